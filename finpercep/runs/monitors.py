"""Who looks at a run from outside: what the loop tells them, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

__all__ = ["Monitor", "started"]


class Monitor(Protocol):
    """A screen, or a tracker of losses. A loop without any works."""

    def start(self, lines: Sequence[str], *, done: int, total: int) -> None:
        """A run begins after `done` of `total` steps; `lines` say what it is."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures of the step that has just been done; at step 0, what was measured before the first one."""

    def close(self) -> None:
        """The run is over, in whatever way."""


@contextmanager
def started(monitors: Sequence[Monitor], lines: Sequence[str], *, done: int, total: int) -> Iterator[None]:
    """Start every monitor, and close those that were started at the end of the block."""
    with ExitStack() as stack:
        for monitor in monitors:
            monitor.start(lines, done=done, total=total)
            stack.callback(monitor.close)
        yield
