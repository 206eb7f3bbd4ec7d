"""Images of many requests through one `Scorer`: what waits is bounded, and goes on as soon as there is room.

No timer gathers batches. While the scorer works, what arrives waits; a stream takes it from there without a break, and
the scorer puts images of one size together as it does for a list.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from finpercep.engine.executor import Outcome
from finpercep.engine.scorer import Scorer

__all__ = ["Batcher", "Busy", "Failed"]

STREAMS = 2
"""One begins with what arrives while the other ends."""
Finish = Callable[[Tensor, Outcome], Any]


class Busy(Exception):
    """Too many images wait; `seconds` until those are done, at the present speed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"expected room for the images, got a full queue for another {seconds:.1f} s")
        self.seconds = seconds


class Failed(Exception):
    """The image that is number `number` of a call, from 1 on, met `error`."""

    def __init__(self, number: int, error: Exception) -> None:
        super().__init__(f"image {number}: {error}")
        self.number, self.error = number, error


class _Job:
    """An image on its way, and who waits for it."""

    def __init__(self, image: Any, finish: Finish, loop: asyncio.AbstractEventLoop) -> None:
        self.image, self.finish, self.loop = image, finish, loop
        self.done: asyncio.Future[Any] = loop.create_future()

    def answer(self, found: Any) -> None:
        """From any thread. Whoever does not wait any more is not told."""

        def tell() -> None:
            if not self.done.done():
                self.done.set_result(found)

        self.image = None
        try:
            self.loop.call_soon_threadsafe(tell)
        except RuntimeError:  # the loop has ended, and with it all that waited
            return


class Batcher:
    """Scores images as they come, in their order.

    Args:
        scorer: what computes; it is used by threads of the batcher.
        most: images that may wait.
    """

    def __init__(self, scorer: Scorer, *, most: int) -> None:
        self.scorer, self.most = scorer, most
        self._waiting: deque[_Job] = deque()
        self._lock = threading.Lock()
        self._running = 0
        self._threads = ThreadPoolExecutor(STREAMS, "finpercep-batches")
        self._seconds_each = 0.0  # between results, a running mean

    @property
    def waiting(self) -> int:
        """Images that no stream has taken yet."""
        return len(self._waiting)

    async def score(self, images: Sequence[Any], finish: Finish) -> list[Any]:
        """What `finish(image, outcome)` gives for each image, in their order; it runs beside the computation.

        Args:
            images: what `Scorer.stream` takes.

        Raises:
            Busy: they would not fit in the queue.
            Failed: one of them could not be scored. Nobody else notices.
        """
        loop = asyncio.get_running_loop()
        jobs = [_Job(image, finish, loop) for image in images]
        with self._lock:
            if len(self._waiting) + len(jobs) > self.most:
                raise Busy(self._seconds_each * len(self._waiting))
            self._waiting.extend(jobs)
            if self._running < STREAMS:
                self._running += 1
                self._threads.submit(self._stream)
        found = []
        try:
            for number, job in enumerate(jobs, 1):
                result = await job.done
                if isinstance(result, Exception):
                    raise Failed(number, result)
                found.append(result)
        finally:
            self._drop(jobs)
        return found

    def _drop(self, jobs: Sequence[_Job]) -> None:
        """Forget those without an answer: of someone who went away, or whose other image was bad."""
        unanswered = {job for job in jobs if job.done.cancel() or job.done.cancelled()}
        if unanswered:
            with self._lock:  # they would hold the room of others, and memory that nobody counts any more
                self._waiting = deque(job for job in self._waiting if job not in unanswered)

    def close(self) -> None:
        """Score what waits, and end the threads."""
        self._threads.shutdown()

    def _stream(self) -> None:
        """Score what waits, until nothing does."""
        while (first := self._next_or_leave()) is not None:
            taken = deque([first])  # a scorer that takes nothing any more answers this one, and so each in its turn
            try:
                self._one_stream(taken)
            except BaseException as error:  # of the scorer itself: what it had taken is lost
                lost = error if isinstance(error, Exception) else RuntimeError(f"the reward raised {error!r}")
                for job in taken:
                    job.answer(lost)

    def _one_stream(self, taken: deque[_Job]) -> None:
        """`taken`: what the scorer has and has not answered yet, in order; at first, what the stream begins with."""
        numbered = {0: taken[0]}

        def images() -> Iterator[Any]:
            yield numbered[0].image
            for number in itertools.count(1):
                job = self._next()
                if job is None:
                    return
                taken.append(job)
                numbered[number] = job
                yield job.image

        def finish(image: Tensor, outcome: Outcome, number: int) -> Any:
            return numbered.pop(number).finish(image, outcome)

        before = time.monotonic()
        for number, found in enumerate(self.scorer.stream(images(), then=finish)):
            numbered.pop(number, None)
            taken.popleft().answer(found)
            now = time.monotonic()
            self._seconds_each += (now - before - self._seconds_each) * (0.1 if self._seconds_each else 1.0)
            before = now

    def _next(self) -> _Job | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _next_or_leave(self) -> _Job | None:
        """None: nothing waits, and the stream is not counted any more, so that the next call begins another."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._running -= 1
            return None
