"""Geometry of images that do not fit: edges that are repeated, and large images in tiles.

Two ways to tile, since two things can be known of a network. Of ours, how far it sees: tiles with a halo that wide
(`tile_spans`) give the whole image's values, without a seam. Of anyone's network that is unknown: its tiles overlap
(`overlapping_starts`) and are blended.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def repeat_edges(images: Tensor, *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> Tensor:
    """Repeat the first and last rows and columns of (…,H,W) that many times.

    Not F.pad(mode="replicate"): the strides of its gradient are not those that torch.compile (2.15) expects.
    """
    leading = [-1] * (images.dim() - 2)
    if top or bottom:
        first, last = images[..., :1, :].expand(*leading, top, -1), images[..., -1:, :].expand(*leading, bottom, -1)
        images = torch.cat([part for part, size in ((first, top), (images, 1), (last, bottom)) if size], -2)
    if left or right:
        first, last = images[..., :1].expand(*leading, -1, left), images[..., -1:].expand(*leading, -1, right)
        images = torch.cat([part for part, size in ((first, left), (images, 1), (last, right)) if size], -1)
    return images


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (…,H,W) until both sides are multiples of `multiple`."""
    # Not -side % multiple: with sizes as symbols, torch.compile (2.15) does not know Python's modulo of a negative.
    bottom, right = ((multiple - side % multiple) % multiple for side in images.shape[-2:])
    return repeat_edges(images, bottom=bottom, right=right)


def tile_spans(length: int, side: int, halo: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """(span in the image incl. halo, core within the span); spans may pass the end, up to a multiple of `stride`.

    The cores are `side` long, but for the last one, and cover the length once.
    """
    padded = -(-length // stride) * stride
    for start in range(0, padded, side):
        stop = min(start + side, padded)
        low, high = max(0, start - halo), min(padded, stop + halo)
        yield slice(low, high), slice(start - low, stop - low)


def padded_crop(image: Tensor, rows: slice, columns: slice) -> Tensor:
    """Part of (3,H,W); what lies beyond the image repeats its last row and column."""
    height, width = image.shape[-2:]
    crop = image[:, rows.start : min(rows.stop, height), columns.start : min(columns.stop, width)]
    return repeat_edges(crop, bottom=max(0, rows.stop - height), right=max(0, columns.stop - width))


def overlapping_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of `tile` that overlap by at least `overlap` begin; the last one ends with the image."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]
