"""Lanes: threads that compute on a fixed number of cores each, so that images go through side by side.

One image on two cores leaves both waiting at the end of every layer, and a barrier costs as much as a small layer. Two
images on a core each never wait, and what an image scores does not depend on how many cores there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["Lanes"]

_starting = threading.Lock()  # torch's number of threads is what new threads begin with: one at a time may change it


class Lanes:
    """A pool of `count` threads in which torch uses `threads` CPU threads; the caller's own number stays as it is."""

    def __init__(self, count: int, threads: int, name: str = "finpercep") -> None:
        self.count, self.threads = count, threads
        self._pool = ThreadPoolExecutor(count, name)
        together = threading.Barrier(count)

        def begin() -> None:
            torch.set_num_threads(threads)
            torch.get_num_threads()  # what a thread asks first it would take from the process, later than here
            together.wait()

        with _starting:
            before = torch.get_num_threads()
            try:
                for started in [self._pool.submit(begin) for _ in range(count)]:
                    started.result()
            finally:
                torch.set_num_threads(before)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run `work(*arguments)` in a lane."""
        return self._pool.submit(work, *arguments)

    def close(self) -> None:
        """Wait for what runs; what has not begun is left undone."""
        self._pool.shutdown(cancel_futures=True)
