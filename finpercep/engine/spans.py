"""Where the time of a loop goes: labeled spans, and their shares of the whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType

__all__ = ["Profile", "SpanTime", "profiled", "span"]

REST = "other"
"""What no span covers, among the times."""

_active: list[Profile] = []


class SpanTime(NamedTuple):
    """Calls of a span, their seconds together, and the part of the profile's seconds that these are."""

    calls: int
    seconds: float
    share: float


class Profile:
    """What `profiled` gives: `span` labels a part of the code, `times` says what each took.

    The times are those of a clock; on a GPU the device is waited for where a span begins and ends, so that kernels
    count where they were asked for.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = time.perf_counter()
        self._found: dict[str, list[float]] = {}
        self._names: set[str] = set()
        self._covered = 0.0  # seconds of what stands in nothing else
        self._stack = threading.local()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Label what runs inside; a span in a span is called "outer/inner".

        Raises:
            ValueError: it would be called "other", as what no span covers is.
        """
        with self._timed(name), torch.profiler.record_function(name):
            yield

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        outer = getattr(self._stack, "path", "")
        path = f"{outer}/{name}" if outer else name
        if path == REST:
            raise ValueError(f"name: expected another one than that of what no span covers, got {name!r}")
        self._stack.path = path
        self._names.add(name)
        _wait()
        started = time.perf_counter()
        try:
            yield
            _wait()
        finally:
            self._stack.path = outer
            seconds = time.perf_counter() - started
            self._found.setdefault(path, []).append(seconds)
            self._covered += 0.0 if outer else seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """The whole is what runs inside, up to an error: called by `profiled`."""
        self._started = time.perf_counter()
        try:
            yield
            _wait()
        finally:
            self.seconds = time.perf_counter() - self._started

    def take(self, events: Any) -> None:
        """Add the `record_function` labels of a torch profile that are not spans already, each under what it is in."""
        paths: dict[int, str] = {}
        for event, outer in _nested(e for e in events if e.is_user_annotation and "ProfilerStep" not in e.name):
            seconds, is_span = event.cpu_time_total / 1e6, event.name in self._names
            inside = [o for o in outer if o.name in self._names] if is_span else outer  # as spans name themselves
            path = paths[id(event)] = f"{paths[id(inside[-1])]}/{event.name}" if inside else event.name
            if not is_span:
                self._found.setdefault(path, []).append(seconds)
                self._covered += 0.0 if outer else seconds
            elif outer and not inside:  # a label around it covers it
                self._covered -= seconds

    def times(self) -> dict[str, SpanTime]:
        """Path of each span -> its time, in the order they first ended; "other" is what none of them covers."""
        whole = self.seconds or time.perf_counter() - self._started
        found = {name: SpanTime(len(each), sum(each), sum(each) / whole) for name, each in self._found.items()}
        rest = whole - self._covered
        return {**found, REST: SpanTime(1, max(0.0, rest), max(0.0, rest) / whole)}

    def table(self) -> str:
        """The times as text."""
        rows = [("span", "calls", "seconds", "share")]
        rows += [(n, str(t.calls), f"{t.seconds:.3f}", f"{t.share:.1%}") for n, t in self.times().items()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            row[0].ljust(widths[0]) + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
            for row in rows
        )


@contextmanager
def profiled(*, trace: str | Path | None = None) -> Iterator[Profile]:
    """Time a loop: ``with profiled() as p: … with p.span("reward"): …``, then `p.times()` or `print(p.table())`.

    Args:
        trace: file for a trace of every operator, which https://ui.perfetto.dev and chrome://tracing show. It also
            gives the times of labels by `torch.profiler.record_function`, torch's own among them, under the span that
            they are in. It slows the loop and takes memory with every step: for a few steps.

    Raises:
        RuntimeError: a trace in a trace, of this or of torch's profiler: torch would end the outer one and the process.
    """
    if trace is not None and torch.autograd._profiler_enabled():
        raise RuntimeError(f"trace: expected no other trace around that of {trace}, got one; leave one of them out")
    profile = Profile()
    _active.append(profile)
    try:
        if trace is None:
            with profile.running():
                yield profile
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as events, profile.running():  # torch's start takes seconds
            yield profile
        profile.take(events.events())
        Path(trace).parent.mkdir(parents=True, exist_ok=True)
        events.export_chrome_trace(str(trace))
    finally:
        _active.remove(profile)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Label what runs inside for whoever profiles the loop; without `profiled` around it, it costs a microsecond."""
    if not _active:
        yield
        return
    with ExitStack() as inside:
        for profile in tuple(_active):  # whoever profiles a part takes it from nobody who profiles the whole
            inside.enter_context(profile._timed(name))
        inside.enter_context(torch.profiler.record_function(name))
        yield


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _nested(events: Iterable[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Each event of the CPU and those that enclose it in time, from the outermost on: of its thread, else of others."""
    current: list[Any] = []
    on_cpu = [e for e in events if e.device_type == DeviceType.CPU]
    for event in sorted(on_cpu, key=lambda e: (e.time_range.start, -e.time_range.end)):
        current = [e for e in current if e.time_range.end > event.time_range.start]
        outer = [e for e in current if e.time_range.end >= event.time_range.end]
        yield event, [e for e in outer if e.thread == event.thread] or outer
        current.append(event)
