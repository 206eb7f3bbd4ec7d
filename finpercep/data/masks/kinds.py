"""What masks a data set is made with, by name: random shapes, and segments of the photo (SAM, superpixels)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finpercep.data.kinds import Kind, split_kind
from finpercep.data.masks.protocol import MaskKind

__all__ = ["MASK_KINDS", "open_mask_kind", "parse_masks"]

_MASKS = "finpercep.data.masks"
_SHAPE = f"{_MASKS}.shapes:ShapeKind"
_SAM_TAKES = ("device", "points_per_side")

MASK_KINDS = {
    "random": Kind("random", _SHAPE, takes=("name",), help="any of boxes, polygons, strokes and blobs"),
    "boxes": Kind("boxes", _SHAPE, takes=("name",)),
    "polygons": Kind("polygons", _SHAPE, takes=("name",)),
    "strokes": Kind("strokes", _SHAPE, takes=("name",)),
    "blobs": Kind("blobs", _SHAPE, takes=("name",)),
    "superpixels": Kind("superpixels", f"{_MASKS}.superpixels:SuperpixelKind"),
    "sam": Kind("sam:FILE", f"{_MASKS}.sam:SamKind", _SAM_TAKES, help="a checkpoint of Segment Anything"),
    "sam-hf": Kind("sam-hf:ID", f"{_MASKS}.sam_hf:HFSamKind", _SAM_TAKES, help="the same by transformers"),
}


def parse_masks(texts: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, value) of each ``--mask``.

    Raises:
        ValueError: none, or one that is not in `MASK_KINDS`.
    """
    if not texts:
        raise ValueError(f"mask: expected at least one of {', '.join(kind.usage for kind in MASK_KINDS.values())}")
    return [split_kind(MASK_KINDS, text, "mask: expected one of") for text in texts]


def open_mask_kind(kind: str, value: str, **options: Any) -> MaskKind:
    """Load what a kind of masks needs.

    Args:
        kind, value: see `parse_masks`.
        options: those of `MakeConfig` and `make_dataset` that the kind takes: `device`, and `points_per_side`, SAM's
            grid of prompts.
    """
    return MASK_KINDS[kind].open(*((value,) if value else ()), name=kind, **options)
