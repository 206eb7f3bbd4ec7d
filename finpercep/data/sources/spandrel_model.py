"""Super-resolution models from checkpoints of any architecture that spandrel knows."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from finpercep.data.image_ops import to_uint8
from finpercep.data.sources.protocol import SourceInput
from finpercep.data.sources.tiles import run_tiled
from finpercep.io.fingerprints import file_hash
from finpercep.io.reasons import one_line

__all__ = ["SpandrelSource"]


class SpandrelSource:
    """A feed-forward model from a checkpoint (.pth, .pt, .ckpt, .safetensors); spandrel tells its architecture."""

    needs_lr = True

    def __init__(self, path: str, *, name: str, scale: int, tile: int, device: str = "cpu") -> None:
        self.name, self.scale, self.tile, self.device = name, scale, tile, torch.device(device)
        path = os.path.expanduser(path)
        self.model = _load_spandrel(path, scale).to(self.device).eval()
        self.fingerprint = file_hash(path)[:16]

    @torch.no_grad()
    def __call__(self, given: SourceInput) -> Tensor:
        assert given.lr is not None
        low = given.lr[None].to(self.device).float() / 255
        made = run_tiled(self.model, low, scale=self.scale, tile=self.tile)
        return to_uint8(made[0].clamp(0, 1).cpu())


def _load_spandrel(path: str, scale: int) -> Any:
    """The model in `path`.

    Raises:
        ImportError: no spandrel.
        OSError: no such file.
        ValueError: not a checkpoint, an unknown architecture, or not an x`scale` model of RGB images.
    """
    try:
        import spandrel
    except ImportError as error:
        raise ImportError(f"spandrel: not installed ({error}); pip install 'finpercep[spandrel]'") from error
    state = _load_state(path)
    try:
        model = spandrel.ModelLoader().load_from_state_dict(spandrel.canonicalize_state_dict(state))
    except Exception as error:  # besides its own type: KeyErrors of architectures that half fit
        raise ValueError(
            f"{path}: expected a checkpoint of an architecture that spandrel knows, got {_shown(state)}"
        ) from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or (
        model.input_channels,
        model.output_channels,
    ) != (3, 3):
        raise ValueError(f"{path}: expected a model from RGB to RGB images, got {model.architecture.name}")
    if model.scale != scale:
        raise ValueError(f"{path}: expected a x{scale} model, got x{model.scale} {model.architecture.name}")
    return model


def _load_state(path: str) -> dict[str, Any]:
    """The tensors of a checkpoint; pickles are read as weights only."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: not found; expected a checkpoint")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises nearly every type on foreign files
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise ValueError(f"{path}: expected a checkpoint of weights; reading it failed with {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a checkpoint of weights, got a {type(state).__name__}")
    return state


def _shown(state: dict[str, Any]) -> str:
    names = list(state)[:3]
    return f"{len(state)} entries such as {', '.join(map(str, names))}" if names else "no entries"
