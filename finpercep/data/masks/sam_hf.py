"""Segment Anything and its successors through `transformers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finpercep.data.masks.segments import SegmentKind, stack_segments
from finpercep.io.fingerprints import folder_fingerprint
from finpercep.io.hub import model_folder
from finpercep.io.reasons import one_line

__all__ = ["HFSamKind"]


class HFSamKind(SegmentKind):
    """Segments of `transformers`' mask generation: SamModel and its successors, from a folder or the hub."""

    name = "sam-hf"

    def __init__(
        self,
        name_or_path: str,
        *,
        device: str = "cpu",
        points_per_side: int,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
    ) -> None:
        from transformers import pipeline

        folder = str(model_folder(name_or_path, ["*.json", "*.safetensors"], kind="a mask generation model"))
        try:
            self.pipeline: Any = pipeline("mask-generation", model=folder, device=device)
        except Exception as error:  # transformers raises many types
            raise ValueError(f"{name_or_path}: expected a mask generation model, got {one_line(error)}") from error
        self.options = {
            "points_per_crop": points_per_side,
            "points_per_batch": 64,
            "pred_iou_thresh": pred_iou_thresh,
            "stability_score_thresh": stability_score_thresh,
        }
        self.fingerprint = f"{folder_fingerprint(folder)}-{points_per_side}"

    @torch.no_grad()
    def prepare(self, image: Tensor) -> Tensor:
        """Segments (N,H,W), bool, of an image uint8 (3,H,W)."""
        from PIL import Image

        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        return stack_segments(list(self.pipeline(picture, **self.options)["masks"]), image)
