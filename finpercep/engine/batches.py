"""How many images go through together: by pixels on a CPU, by free memory on a GPU; what is out of memory is halved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["halving", "is_out_of_memory", "most_images", "padded_count", "padded_to", "unpadded_count"]

CPU_PIXELS = 1 << 16
"""Pixels of a batch on a CPU: up to there calls cost more than what a cache holds gains."""
FREE_SHARE = 0.7
"""Part of a GPU's free memory that a batch may take: its size is an estimate from smaller ones."""
FIRST_BYTES = 4096.0
"""What a pixel is taken to need on a GPU before a reward was seen: what is too much is halved."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def most_images(pixels: int, largest: int, *, free: int | None = None, bytes_per_pixel: float = 0.0) -> int:
    """Images of `pixels` pixels that go through together: from 1 to `largest`.

    Args:
        free: bytes that are free on the GPU; None is a CPU.
        bytes_per_pixel: what the reward was seen to take on the GPU; 0 is not known yet: `FIRST_BYTES`.
    """
    if free is None:
        return max(1, min(largest, CPU_PIXELS // pixels))
    return max(1, min(largest, int(FREE_SHARE * free / ((bytes_per_pixel or FIRST_BYTES) * pixels))))


def padded_count(count: int, largest: int, *, full: bool) -> int:
    """The batch that `count` images are padded to: `largest` if `full`, else the next power of two up to it."""
    return largest if full else min(largest, 1 << (count - 1).bit_length())


def unpadded_count(count: int, largest: int) -> int:
    """The most images up to `count` that `padded_count` pads to no more than `count`."""
    return count if count >= largest else 1 << (count.bit_length() - 1)


def padded_to(batch: Tensor, count: int) -> Tensor:
    """A batch (B,…) with its last image repeated up to `count`."""
    if len(batch) >= count:
        return batch
    return torch.cat([batch, batch[-1:].expand(count - len(batch), *batch.shape[1:])])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or Python, had no memory on a GPU or a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in str(error) or "out of memory" in str(error))


def halving(work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], shrunk: Any = None) -> list[Result]:
    """`work(items)`, or of its halves where there is no memory for the whole, and of theirs.

    Args:
        shrunk: is told how many items are tried next, after each failure.

    Raises:
        Exception: what `work` raised for one item, or for another reason.
    """
    try:
        return work(items)
    except Exception as error:
        if len(items) == 1 or not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():  # outside of `except`: the error holds the tensors of the call that failed
        torch.cuda.empty_cache()
    half = len(items) // 2
    if shrunk is not None:
        shrunk(half)
    return [*halving(work, items[:half], shrunk), *halving(work, items[half:], shrunk)]
