"""Upscaling pipelines of diffusers as sources."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finpercep.data.image_ops import to_uint8
from finpercep.data.sources.protocol import SourceInput
from finpercep.data.sources.tiles import run_tiled
from finpercep.io.fingerprints import folder_fingerprint
from finpercep.io.hub import model_folder
from finpercep.io.reasons import one_line
from finpercep.models.tiles import pad_to_multiple

__all__ = ["DiffusersSource"]


class DiffusersSource:
    """`StableDiffusionUpscalePipeline` or `LDMSuperResolutionPipeline`, from a folder or the hub.

    Without a prompt, and so without guidance: the low-resolution image alone says what to make.
    """

    needs_lr = True

    def __init__(
        self,
        name_or_path: str,
        *,
        name: str,
        scale: int,
        tile: int,
        steps: int,
        device: str = "cpu",
    ) -> None:
        self.name, self.scale, self.tile, self.steps = name, scale, tile, steps
        self.device = torch.device(device)
        folder = str(model_folder(name_or_path, kind="a diffusers pipeline"))
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
        padded = pad_to_multiple(image, self.multiple)
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
        raise ValueError(f"{shown}: expected a diffusers pipeline, got {one_line(error)}") from error
    if isinstance(pipeline, diffusers.StableDiffusionUpscalePipeline):
        return pipeline, True
    if isinstance(pipeline, diffusers.LDMSuperResolutionPipeline):
        return pipeline, False
    raise ValueError(
        f"{shown}: expected a StableDiffusionUpscalePipeline or LDMSuperResolutionPipeline, "
        f"got {type(pipeline).__name__}"
    )
