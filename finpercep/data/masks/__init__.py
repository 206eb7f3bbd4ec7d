"""Masks: random shapes, superpixels and segments, and what draws them for a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.data.masks.kinds import MASK_KINDS, open_mask_kind, parse_masks
    from finpercep.data.masks.maker import DrawnMask, MaskMaker
    from finpercep.data.masks.protocol import MaskKind
    from finpercep.data.masks.sam import SamKind
    from finpercep.data.masks.sam_hf import HFSamKind
    from finpercep.data.masks.shapes import SHAPES, ShapeKind, random_shape
    from finpercep.data.masks.simple import random_blobs, random_boxes
    from finpercep.data.masks.superpixels import SuperpixelKind

__all__ = [
    "MASK_KINDS",
    "SHAPES",
    "DrawnMask",
    "HFSamKind",
    "MaskKind",
    "MaskMaker",
    "SamKind",
    "ShapeKind",
    "SuperpixelKind",
    "open_mask_kind",
    "parse_masks",
    "random_blobs",
    "random_boxes",
    "random_shape",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "DrawnMask": "finpercep.data.masks.maker",
        "HFSamKind": "finpercep.data.masks.sam_hf",
        "MASK_KINDS": "finpercep.data.masks.kinds",
        "MaskKind": "finpercep.data.masks.protocol",
        "MaskMaker": "finpercep.data.masks.maker",
        "SHAPES": "finpercep.data.masks.shapes",
        "SamKind": "finpercep.data.masks.sam",
        "ShapeKind": "finpercep.data.masks.shapes",
        "SuperpixelKind": "finpercep.data.masks.superpixels",
        "open_mask_kind": "finpercep.data.masks.kinds",
        "parse_masks": "finpercep.data.masks.kinds",
        "random_blobs": "finpercep.data.masks.simple",
        "random_boxes": "finpercep.data.masks.simple",
        "random_shape": "finpercep.data.masks.shapes",
    },
)
