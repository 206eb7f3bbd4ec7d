"""Streams are lent to one owner at a time, as far as that goes without a GPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from finpercep.engine import streams as streams_module


def test_streams_are_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch gives the same 32 out in turns; a copy on a stream that captures would become a part of the graph."""
    monkeypatch.setattr(streams_module, "_handed_out", set())
    device, turns = torch.device("cuda", 0), itertools.cycle(range(32))

    class Turn:
        def __init__(self, _: Any) -> None:
            self.cuda_stream = next(turns)

    def handles(count: int) -> list[int]:
        return [stream.cuda_stream for stream in streams_module.own_streams(device, count, Turn)]

    first = handles(4)
    for _ in range(25):  # streams of others
        next(turns)
    second = handles(4)
    assert len({*first, *second}) == 8
    assert len({*first, *second, *(h for _ in range(6) for h in handles(4))}) == 32
    assert len(handles(4)) == 4  # where all are given out, one more scorer shares
    streams_module.give_back(device, second)
    assert sorted(handles(4)) == sorted(second)
