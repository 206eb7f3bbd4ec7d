"""Signals that wait for the end of a training step, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


def ignore_interrupts(worker: int) -> None:
    """For processes that make batches: Ctrl-C reaches them too, and the last step still needs one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def ends_of_children_ignored() -> Iterator[None]:
    """Inside, the end of a process that makes batches raises nothing; the loader finds out when it is asked for one.

    Outside of the main thread nothing changes.
    """
    before = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


class Interruption:
    """Inside, a first Ctrl-C only sets `asked`; a second one interrupts at once.

    Where interrupts are ignored, or outside of the main thread, nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and before is not signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
