"""One pass over some images: what is decoded, what waits for others of its size, what is done."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, wait
from typing import Any

import torch
from torch import Tensor

from finpercep.engine.executor import Executor, Outcome
from finpercep.engine.lanes import Lanes
from finpercep.io.images import ImageError, image_sides, to_tensor

__all__ = ["Item", "Run"]


class Item:
    """An image on its way: `reading` ends when it is decoded (and perhaps scored), `done` holds what is yielded."""

    def __init__(self, given: Any, index: int, context: Mapping[str, Any]) -> None:
        self.given, self.index, self.context = given, index, context
        self.pixels = _pixels(given)
        self.image: Tensor | None = None
        self.made: tuple[torch.cuda.Event, ...] = ()  # when an image on a GPU is, that came after the pass had begun
        self.reading: Future[None] = Future()
        self.done: Future[Any] = Future()


class Run:
    """Reads images in lanes, sorts them by size, and scores each group that is full.

    Args:
        lanes: the threads that decode, and run `then` where others score; None does everything in the caller's.
        units: the threads that score; None scores in the lane that decodes a group's last image, and holds it in cache.
        then: see `Scorer.stream`.
        after: what the caller's stream had been given when the pass began; None on a CPU.
    """

    def __init__(
        self,
        executor: Executor,
        lanes: Lanes | None,
        units: Pool | None,
        then: Callable[..., Any] | None,
        after: torch.cuda.Event | None,
    ) -> None:
        self.executor, self.lanes, self.units, self.then = executor, lanes, units, then
        self.after = () if after is None else (after,)
        self._waiting: dict[Any, list[Item]] = {}
        self._lock = threading.Lock()

    def start(self, image: Any, index: int, context: Mapping[str, Any], *, late: bool = False) -> Item:
        """Begin to read the image that is number `index`; a late one was made after the pass had begun."""
        item = Item(image, index, context)
        item.made = _made(image) if late else ()
        if self.lanes is None:
            self._read(item)
            item.reading.set_result(None)
        else:
            item.reading = self.lanes.submit(self._read, item)
        return item

    def result(self, item: Item, others: Iterable[Item]) -> Any:
        """What `item` gave, or the exception that it met. `others` may join its group, as far as they are read."""
        item.reading.result()
        if self._is_waiting(item):
            wait([other.reading for other in others])
            self._flush(item)
        return item.done.result()

    def _read(self, item: Item) -> None:
        try:
            item.image = self._decoded(item)
            group = self._joined(item, item.image)
        except Exception as error:
            item.done.set_result(error)
            return
        if group:
            self._begin(group)

    def _decoded(self, item: Item) -> Tensor:
        image = item.given
        if callable(image):
            image = image()
            item.made = _made(image)
        name = f"images[{item.index}]"
        if not (isinstance(image, Tensor) and image.is_cuda):
            return to_tensor(image, name=name)
        if image.is_floating_point() and image.shape[:1] == (3,):
            return image  # checking its values would wait for the GPU
        with self.executor.own_stream((*self.after, *item.made)):  # what is made of it is made where it will be read
            return to_tensor(image, name=name)

    def _joined(self, item: Item, image: Tensor) -> list[Item]:
        """The group that `item` completes, or nothing while it is not full."""
        height, width = int(image.shape[-2]), int(image.shape[-1])
        capacity = self.executor.capacity(height, width)
        shapes = tuple(tuple(v.shape) if isinstance(v, Tensor) else None for v in item.context.values())
        key = (height, width, image.dtype, image.device, shapes)
        with self._lock:
            group = self._waiting.setdefault(key, [])
            group.append(item)
            return self._waiting.pop(key) if len(group) >= capacity else []

    def _is_waiting(self, item: Item) -> bool:
        with self._lock:
            return any(item in group for group in self._waiting.values())

    def _flush(self, item: Item) -> None:
        with self._lock:
            key = next((key for key, group in self._waiting.items() if item in group), None)
            group = self._waiting.pop(key) if key is not None else []
        if group and self.lanes is not None and self.units is None:
            self.lanes.submit(self._score, group)
        elif group:
            self._begin(group)

    def _begin(self, group: list[Item]) -> None:
        if self.units is not None:
            try:
                self.units.submit(self._score, group)
                return
            except RuntimeError:  # closed by another thread meanwhile: this one does it
                pass
        self._score(group)

    def _score(self, group: list[Item]) -> None:
        images = [item.image for item in group if item.image is not None]
        try:
            after = (*self.after, *(event for item in group for event in item.made))
            outcomes = self.executor.outcomes(images, [item.context for item in group], after)
            if len(outcomes) != len(images):  # nobody would tell whoever waits for the others
                raise ValueError(f"reward: expected {len(images)} outcomes, got {len(outcomes)}")
        except Exception as error:
            if len(group) == 1:
                group[0].done.set_result(error)
                return
            outcomes = []
        except BaseException as error:  # SystemExit, say: it ends the pass, for whoever waits for any of them
            for item in group:
                item.done.set_exception(error)
            raise
        if (
            not outcomes
        ):  # which of them it is only shows when each goes alone; outside of `except`, which holds tensors
            for item in group:
                self._score([item])
            return
        for item, image, outcome in zip(group, images, outcomes, strict=True):
            if self.then is None or self.units is None or self.lanes is None:
                self._finish(item, image, outcome)
            else:  # whoever keeps a GPU busy goes on to the next batch
                self.lanes.submit(self._finish, item, image, outcome)

    def _finish(self, item: Item, image: Tensor, outcome: Outcome) -> None:
        try:
            item.done.set_result(outcome if self.then is None else self.then(image, outcome, item.index))
        except Exception as error:
            item.done.set_result(error)
        except BaseException as error:
            item.done.set_exception(error)
            raise
        item.image = item.given = None  # an outcome that waits for its turn holds no image


def _made(image: Any) -> tuple[torch.cuda.Event, ...]:
    """What this thread's stream has been given up to now, an image on a GPU among it."""
    if not (isinstance(image, Tensor) and image.is_cuda):
        return ()
    return (torch.cuda.current_stream(image.device).record_event(),)


def _pixels(image: Any) -> int:
    """Pixels of an image that may not be decoded yet; 0 of a file that whoever reads it will refuse."""
    if isinstance(image, (str, os.PathLike)):
        try:
            height, width = image_sides(image)
        except ImageError:
            return 0
        return height * width
    if isinstance(image, Tensor):
        return image[0].numel() if image.dim() and len(image) else 0
    size = getattr(image, "size", 0)
    return size[0] * size[1] if isinstance(size, tuple) else int(size) // 3
