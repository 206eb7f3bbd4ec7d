"""Vision transformers as feature extractors of the fault target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finpercep.io.fingerprints import folder_fingerprint
from finpercep.io.hub import model_folder
from finpercep.io.reasons import one_line
from finpercep.models.tiles import pad_to_multiple
from finpercep.models.vit_encoder import CLIP_MEAN, CLIP_STD

__all__ = ["ViTFeatures"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ViTFeatures:
    """Patch tokens of the last layer, normalized by the network's own last norm: DINOv3, DINOv2, CLIP, SigLIP.

    Of models that read text, too (CLIP, SigLIP), the vision tower serves. Images are taken at their own size; sides
    that are no multiple of the patch are filled with the last pixel.
    Shape: (B,3,H,W) in [0, 1] -> (B,C,ceil(H/patch),ceil(W/patch)).
    """

    def __init__(self, name_or_path: str, *, device: str = "cpu") -> None:
        folder = str(model_folder(name_or_path, ["*.json", "*.safetensors"]))
        self.name = Path(name_or_path).name
        self.fingerprint = folder_fingerprint(folder)
        self.model = _load_vit(folder, name_or_path).to(device).eval()
        self.patch = int(self.model.config.patch_size)
        mean, std = _normalization(folder, str(self.model.config.model_type))
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, device=device).view(3, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        padded = pad_to_multiple(images.to(self.mean.device), self.patch)
        height, width = (side // self.patch for side in padded.shape[-2:])
        clip = self.model.config.model_type.startswith("clip")
        options = (
            {"interpolate_pos_encoding": True} if self.model.config.model_type.startswith(("clip", "siglip")) else {}
        )
        tokens = self.model((padded - self.mean) / self.std, **options).last_hidden_state
        if clip:  # others have it behind them already
            tokens = _tower(self.model).post_layernorm(tokens)
        if tokens.shape[1] < height * width:
            raise ValueError(f"{self.name}: expected a token per patch, {height * width}, got {tokens.shape[1]}")
        patches = tokens[:, tokens.shape[1] - height * width :]  # without class and register tokens
        return patches.transpose(1, 2).unflatten(2, (height, width)).contiguous()


def _load_vit(folder: str, shown: str) -> Any:
    from transformers import AutoConfig, AutoModel, CLIPVisionModel, SiglipVisionModel

    try:
        config = AutoConfig.from_pretrained(folder)
        towers: dict[str, Any] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
        kind = towers.get(config.model_type.removesuffix("_vision_model"), AutoModel)
        model = kind.from_pretrained(folder)
    except Exception as error:  # transformers raises many types
        raise ValueError(f"{shown}: expected a vision transformer, got {one_line(error)}") from error
    if not isinstance(getattr(model.config, "patch_size", None), int):
        raise ValueError(f"{shown}: expected a vision transformer with patches, got {config.model_type}")
    return model


def _tower(model: Any) -> Any:
    return getattr(model, "vision_model", model)


def _normalization(folder: str, model_type: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation as saved with the model; else those it is known to be trained with."""
    path = Path(folder) / "preprocessor_config.json"
    saved = json.loads(path.read_text()) if path.is_file() else {}
    clip = model_type.startswith("clip")
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else (IMAGENET_MEAN, IMAGENET_STD)
    if model_type.startswith("siglip"):
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return tuple(saved.get("image_mean", mean)), tuple(saved.get("image_std", std))
