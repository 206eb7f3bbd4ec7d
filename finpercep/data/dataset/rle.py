"""COCO run-length encoding: how masks lie on disk, readable by pycocotools and everything built on it."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor


class RLE(TypedDict):
    """`size` [H, W] and `counts`: runs of 0 and 1 in turn, column by column, as COCO's printable text."""

    size: list[int]
    counts: str


def encode_rle(mask: Tensor) -> RLE:
    """A mask (H,W) or (1,H,W), bool or {0, 1}, as COCO RLE."""
    plane = mask.squeeze(0) if mask.ndim == 3 else mask
    flat = plane.bool().T.flatten()
    changes = torch.nonzero(flat[1:] != flat[:-1]).flatten() + 1
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), changes, torch.tensor([flat.numel()])])
    runs = bounds.diff().tolist()
    if flat.numel() and bool(flat[0]):  # the first run always counts zeros
        runs = [0, *runs]
    return {"size": list(plane.shape), "counts": _to_text(runs)}


def decode_rle(rle: RLE) -> Tensor:
    """The mask (1,H,W), bool.

    Raises:
        ValueError: the runs do not fill the size.
    """
    height, width = rle["size"]
    runs = torch.tensor(_from_text(rle["counts"]), dtype=torch.long)
    if int(runs.sum()) != height * width or bool((runs < 0).any()):
        raise ValueError(f"rle: expected runs of {height * width} pixels in all, got {int(runs.sum())}")
    values = torch.arange(len(runs)) % 2 == 1
    return values.repeat_interleave(runs).view(width, height).T[None].contiguous()


def _to_text(runs: list[int]) -> str:
    """COCO's text: from the third run on, the difference to the run before the last; 5 bits a character."""
    text = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text.append(chr((bits | (0x20 if more else 0)) + 48))
    return "".join(text)


def _from_text(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
