"""Photos through the autoencoder of a latent diffusion model: what such a model's decoder reinvents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.image_ops import to_uint8
from finpercep.data.randomness import uniform
from finpercep.data.sources.protocol import SourceInput
from finpercep.data.sources.tiles import run_tiled
from finpercep.io.fingerprints import folder_fingerprint
from finpercep.io.hub import model_folder
from finpercep.io.reasons import one_line
from finpercep.models.tiles import pad_to_multiple

__all__ = ["AutoencoderSource"]

NOISE = 0.0, 0.6
"""Strength of the noise, standard deviations of the latent's own channels: from what the autoencoder alone loses to
texture made anew."""
_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
_FILES = ("config.json", "diffusion_pytorch_model*", "vae/config.json", "vae/diffusion_pytorch_model*")


class AutoencoderSource:
    """diffusers' `AutoencoderKL` or `AutoencoderTiny`, from a folder or the hub, with noise in the latent.

    The photo is encoded, noise of a strength uniform in `NOISE` is added, and the sum decoded: the decoder invents fine
    detail, coarse structure stays. No low-resolution image is needed.

    Args:
        name_or_path: the autoencoder, or a pipeline that has one in `vae`.
        name: of the source.
        scale: photos are so many times larger than what `tile` counts in.
        tile: side of the tiles it sees, low-resolution pixels; 0 gives it whole images.
        device: of the autoencoder.

    Raises:
        ImportError: no diffusers.
        ValueError: it is neither of the two.
    """

    needs_lr = False

    def __init__(self, name_or_path: str, *, name: str, scale: int, tile: int, device: str = "cpu") -> None:
        self.name, self.tile = name, tile * scale
        self.device = torch.device(device)
        folder = model_folder(name_or_path, _FILES, kind="an autoencoder of diffusers")
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
        self.model = _load(folder, name_or_path).to(self.device).eval()
        self.factor = 2 ** (len(self.model.config.block_out_channels) - 1)  # from latent to image
        self.fingerprint = f"{folder_fingerprint(folder)}-1"  # counts changes of what is made with the weights

    @torch.no_grad()
    def __call__(self, given: SourceInput) -> Tensor:
        strength = uniform(*NOISE, given.generator)
        photo = given.gt[None].float() / 255
        # One noise for all tiles, beside the photo: where they overlap, two of their own would average out.
        sides = [-(-side // self.factor) for side in photo.shape[-2:]]
        noise = strength * torch.randn(1, self.model.config.latent_channels, *sides, generator=given.generator)
        fine = F.interpolate(noise, scale_factor=self.factor)[..., : photo.shape[-2], : photo.shape[-1]]
        made = run_tiled(self._reinvented, torch.cat([photo, fine], 1), scale=1, tile=self.tile)
        return to_uint8(made[0].clamp(0, 1))

    def _reinvented(self, tile: Tensor) -> Tensor:
        """There and back: photo and noise (1,3+C,h,w) -> (1,3,h,w) in [0, 1]."""
        height, width = tile.shape[-2:]
        tile = pad_to_multiple(tile, self.factor).to(self.device)
        encoded = self.model.encode(tile[:, :3] * 2 - 1)
        latent = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        noise = tile[:, 3:, self.factor // 2 :: self.factor, self.factor // 2 :: self.factor]
        noisy = latent + noise * latent.std((2, 3), keepdim=True)
        return (self.model.decode(noisy).sample.cpu()[..., :height, :width] + 1) / 2


def _load(folder: Path, shown: str) -> Any:
    """The autoencoder in a folder.

    Raises:
        ImportError, ValueError: see `AutoencoderSource`.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"diffusers: not installed ({error}); pip install 'finpercep[diffusers]'") from error
    expected = f"{shown}: expected diffusers' {' or '.join(_CLASSES)}"
    try:
        found = json.loads((folder / "config.json").read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{expected}, or a pipeline with one, got {one_line(error)}") from error
    if found not in _CLASSES:
        raise ValueError(f"{expected}, got {found}")
    try:
        return getattr(diffusers, found).from_pretrained(folder)
    except Exception as error:  # of many types: no weights, weights of another network, a file that is not whole
        raise ValueError(f"{expected}, got {one_line(error)}") from error
