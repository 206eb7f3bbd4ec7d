"""Lanes: threads that compute on a fixed number of cores each, so that images go through side by side.

One image on two cores leaves both waiting at the end of every layer, and a barrier costs as much as a small layer. Two
images on a core each never wait, and what an image scores does not depend on how many cores there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["Lanes"]

_starting = threading.Lock()  # torch's number of threads is what new threads begin with: one at a time may change it


_here = threading.local()  # in a lane: whose it is


def _anew() -> None:
    """In a forked process: whoever held the lock is not there to give it back."""
    global _starting
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)


class Lanes:
    """A pool of `count` threads in which torch uses `threads` CPU threads; the caller's own number stays as it is.

    Raises:
        RuntimeError: the system starts no more threads.
    """

    def __init__(self, count: int, threads: int, name: str = "finpercep") -> None:
        self.count, self.threads, self.name = count, threads, name
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = self._started()

    def _started(self) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(self.count, self.name)
        together = threading.Barrier(self.count)

        def begin() -> None:
            torch.set_num_threads(self.threads)
            _here.lanes = self
            torch.get_num_threads()  # what a thread asks first it would take from the process, later than here
            together.wait()

        with _starting:
            before = torch.get_num_threads()
            try:
                for started in [pool.submit(begin) for _ in range(self.count)]:
                    started.result()
            except BaseException as error:
                together.abort()  # those that started wait there for the others, and whoever ends the pool for them
                pool.shutdown()
                if isinstance(error, RuntimeError):
                    raise RuntimeError(f"lanes: expected to start {self.count} threads, got: {error}") from error
                raise
            finally:
                torch.set_num_threads(before)
        return pool

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run `work(*arguments)` in a lane; threads that were ended are started again.

        In one of them, which cannot wait for itself, it runs there and then.
        """
        if getattr(_here, "lanes", None) is self:
            return _done(work, *arguments)
        with self._lock:
            if self._pool is None:
                self._pool = self._started()
            return self._pool.submit(work, *arguments)

    def close(self) -> None:
        """End the threads, once they have done what was given to them; whoever comes meanwhile waits."""
        with self._lock:  # all along: the old threads and new ones would call a reward at once that takes one caller
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = None


def _done(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """A future of what is done by now."""
    future: Future[Any] = Future()
    try:
        future.set_result(work(*arguments))
    except BaseException as error:
        future.set_exception(error)
    return future
