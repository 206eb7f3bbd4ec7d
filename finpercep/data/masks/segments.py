"""Segments of a photo, as networks find them, made into masks of a wanted area."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["SegmentKind", "join_segments", "stack_segments"]


class SegmentKind:
    """What kinds of masks share whose `prepare` gives segments (N,H,W), bool: how a mask is drawn from them."""

    def draw(
        self, prepared: Tensor, image: Tensor, generator: torch.Generator, area: tuple[float, float]
    ) -> Tensor | None:
        """See `join_segments`."""
        return join_segments(prepared, generator, area)


def join_segments(segments: Tensor, generator: torch.Generator, area: tuple[float, float]) -> Tensor | None:
    """A random segment of (N,H,W), bool, as a mask (1,H,W); small ones are joined until they cover `area[0]`.

    Returns None where no segment and no union of them covers a fraction within `area`.
    """
    if not len(segments):
        return None
    union = torch.zeros_like(segments[0])
    for number in torch.randperm(len(segments), generator=generator).tolist():
        joined = union | segments[number]
        if joined.float().mean() <= area[1]:
            union = joined
        if union.float().mean() >= area[0]:
            return union[None]
    return None


def stack_segments(masks: Sequence[Any], image: Tensor) -> Tensor:
    """Masks of the size of an image, each (H,W), as (N,H,W), bool; N may be 0."""
    if not masks:
        return torch.zeros(0, *image.shape[-2:], dtype=torch.bool)
    return torch.stack([torch.as_tensor(mask).bool().cpu() for mask in masks])
