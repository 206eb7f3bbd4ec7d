"""Where the time of a step goes: rollout, reward, update."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from finpercep.engine.spans import span

_running: ContextVar[Clock | None] = ContextVar("clock", default=None)
OTHER = "other"


class Clock:
    """Time by part; a part inside another one is taken out of that. On a GPU by its events: nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, Any]] = []  # what begins, and when

    @contextmanager
    def running(self) -> Iterator[None]:
        """Parts that `timed` names inside count on this clock; it begins anew."""
        self.marks = [(OTHER, self._now())]
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)
            self.marks.append(("", self._now()))

    def seconds(self) -> dict[str, float]:
        """Part -> seconds of what `running` was last around; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        totals: dict[str, float] = {}
        for (name, begin), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            length = begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
            totals[name] = totals.get(name, 0.0) + length
        return totals

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Time inside counts as that part's, on the clock that runs, if one does, and as a span for `engine.profiled`."""
    clock = _running.get()
    with span(name):
        if clock is None:
            yield
            return
        outside = clock.marks[-1][0]
        clock.marks.append((name, clock._now()))
        try:
            yield
        finally:
            clock.marks.append((outside, clock._now()))
