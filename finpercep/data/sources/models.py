"""Super-resolution models as sources: any checkpoint that spandrel knows, and diffusers' upscaling pipelines."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.sources.sources import SourceInput, to_uint8
from finpercep.data.sources.tiles import run_tiled
from finpercep.io.fingerprints import file_hash, folder_fingerprint, model_folder


class SpandrelSource:
    """A feed-forward model from a checkpoint (.pth, .pt, .ckpt, .safetensors); spandrel tells its architecture."""

    needs_lr = True

    def __init__(self, path: str, name: str, *, scale: int, device: str = "cpu", tile: int = 256) -> None:
        self.name, self.scale, self.tile, self.device = name, scale, tile, torch.device(device)
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
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path}: expected a checkpoint of weights; reading it failed with {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a checkpoint of weights, got a {type(state).__name__}")
    return state


def _shown(state: dict[str, Any]) -> str:
    names = list(state)[:3]
    return f"{len(state)} entries such as {', '.join(map(str, names))}" if names else "no entries"


class DiffusersSource:
    """`StableDiffusionUpscalePipeline` or `LDMSuperResolutionPipeline`, from a folder or the hub.

    Without a prompt, and so without guidance: the low-resolution image alone says what to make.
    """

    needs_lr = True

    def __init__(
        self,
        name_or_path: str,
        name: str,
        *,
        scale: int,
        device: str = "cpu",
        tile: int = 256,
        steps: int = 50,
    ) -> None:
        self.name, self.scale, self.tile, self.steps = name, scale, tile, steps
        self.device = torch.device(device)
        folder = model_folder(name_or_path)
        self.pipeline, self.prompted = _load_pipeline(folder, name_or_path)
        self.pipeline.to(self.device)
        self.pipeline.set_progress_bar_config(disable=True)
        levels = len(self.pipeline.unet.config.block_out_channels)
        # Of the sides that the network can halve; the image processor cuts sides to its own factor.
        self.multiple = max(2 ** (levels - 1), getattr(self.pipeline, "vae_scale_factor", 1))
        self.fingerprint = f"{folder_fingerprint(folder)}-{steps}"

    @torch.no_grad()
    def __call__(self, given: SourceInput) -> Tensor:
        assert given.lr is not None
        low = given.lr[None].to(self.device).float() / 255

        def model(image: Tensor) -> Tensor:
            return self._enlarge(image, given.generator)

        return to_uint8(run_tiled(model, low, scale=self.scale, tile=self.tile)[0].clamp(0, 1).cpu())

    def _enlarge(self, image: Tensor, generator: torch.Generator) -> Tensor:
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        options: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "generator": generator,
            "output_type": "pt",
        }
        if self.prompted:
            options |= {"prompt": "", "guidance_scale": 1.0}
            made = self.pipeline(image=padded, **options).images
        else:
            made = self.pipeline(image=padded * 2 - 1, **options).images
        if made.shape[-1] != padded.shape[-1] * self.scale:
            factor = made.shape[-1] / padded.shape[-1]
            raise ValueError(f"{self.name}: expected a x{self.scale} pipeline, got x{factor:g}")
        return made[..., : height * self.scale, : width * self.scale]


def _load_pipeline(folder: str, shown: str) -> tuple[Any, bool]:
    """The pipeline, and whether it takes a prompt."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"diffusers: not installed ({error}); pip install 'finpercep[diffusers]'") from error
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{shown}: expected a diffusers pipeline, got {reason}") from error
    if isinstance(pipeline, diffusers.StableDiffusionUpscalePipeline):
        return pipeline, True
    if isinstance(pipeline, diffusers.LDMSuperResolutionPipeline):
        return pipeline, False
    raise ValueError(
        f"{shown}: expected a StableDiffusionUpscalePipeline or LDMSuperResolutionPipeline, "
        f"got {type(pipeline).__name__}"
    )
