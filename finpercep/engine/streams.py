"""CUDA streams that nobody else in the process has: torch gives the same few out in turns."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["give_back", "lent_streams", "own_streams"]

TORCHS_STREAMS = 32
"""Streams of a device that torch has to give, in turns."""
_handed_out: set[tuple[torch.device, int]] = set()
_handing_out = threading.Lock()


def own_streams(device: torch.device, count: int, make: Callable[..., Any] = torch.cuda.Stream) -> list[Any]:
    """Streams that no one else has from here, while there are such; `give_back` takes them back."""
    found: list[Any] = []
    for _ in range(2 * TORCHS_STREAMS):
        stream = make(device)
        with _handing_out:
            if (device, stream.cuda_stream) not in _handed_out:
                _handed_out.add((device, stream.cuda_stream))
                found.append(stream)
        if len(found) == count:
            return found
    return found + [make(device) for _ in range(count - len(found))]


def lent_streams(owner: object, device: torch.device, count: int) -> list[torch.cuda.Stream]:
    """`own_streams`, given back when their owner is gone."""
    streams = own_streams(device, count)
    weakref.finalize(owner, give_back, device, [stream.cuda_stream for stream in streams])
    return streams


def give_back(device: torch.device, streams: Sequence[int]) -> None:
    """Streams, by their handles, that their owner uses no more."""
    with _handing_out:
        _handed_out.difference_update((device, stream) for stream in streams)
