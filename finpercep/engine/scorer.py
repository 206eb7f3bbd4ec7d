"""`Scorer`: a reward around many images of any kind and size, in the caller's order, at the speed of the machine."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from finpercep.engine.dtypes import DTYPES, NAMED_DTYPES
from finpercep.engine.executor import COMPILE, Executor, Outcome
from finpercep.engine.lanes import Lanes
from finpercep.engine.run import Item, Run
from finpercep.models.clip_iqa import CLIPIQA
from finpercep.models.output import RewardOutput
from finpercep.models.reward_model import RewardModel
from finpercep.models.scoring import as_images
from finpercep.rewards.load import load_reward
from finpercep.rewards.protocol import CONTEXT, Reward, check_higher_better
from finpercep.runs.devices import check_device, take_full_float32

__all__ = ["Scorer"]

AHEAD = 8
"""Images for each lane that are held at once, decoded or being decoded."""
AHEAD_PIXELS = 1 << 22
"""Pixels for each lane that are held at once, beyond the first image; bounds the memory whatever the sizes."""
DECODERS = 8
"""Threads that decode for a GPU, at most."""


_scorers: weakref.WeakSet[Scorer] = weakref.WeakSet()


def _forget_threads() -> None:
    """In a forked process, as a worker of a `DataLoader` is: threads of the other one are not there to answer."""
    for scorer in list(_scorers):
        scorer._without_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


class Scorer:
    """Scores with a reward: files are decoded beside the computation, sizes are sorted, batches fit the memory.

    On a CPU images go through side by side, one core each (`engine.lanes`), where the reward is a `RewardModel` or a
    `CLIPIQA`; any other, of which it is not known whether threads may call it at once, is called by one thread with
    all cores, or one if `deterministic`. The caller's autocast is not obeyed: `dtype` is. On a GPU batches of
    one size go through on a stream of their own, while the next images are decoded. Out of memory halves the batch and
    goes on. Any number of threads may score at once.

    On a GPU float32 convolutions of the whole process are float32 from here on, not TF32 (`torch.backends.cudnn`).

    It is a reward itself: called with a batch on the device it answers there, without gradients and without waiting.

    Args:
        reward: a reward, or what `load_reward` takes. What is in training, now or later, is
            scored as it would in evaluation; what `torch.compile` made of it before is not used.
        device: where to score; None is where the reward is. A reward elsewhere is copied.
        dtype: "fp32", "bf16", "fp16", torch's names of these, or a floating-point type; the first layers stay in
            float32. None is the reward's own.
        compile: a mode of `torch.compile`: "default", "reduce-overhead", "max-autotune"; on a GPU the latter
            two with graphs, see there, in place of torch's own. None does not compile. Up
            to five compilations serve all sizes: for one image and for more, for sides that are padded to the model's
            stride and those that are not, and for squares, if they come first.
        graphs: replay a CUDA graph for each shape of a batch, which is padded to a power of two. GPU only.
        deterministic: an image scores the same bits alone, in any batch, at any position, with any number of threads.
            On a CPU each image then goes through alone on one core; on a GPU every batch is padded to `batch_size`.
        batch_size: images of one size that go through together, at most.
        tile: of a `RewardModel`, see there.
        lanes: images side by side on a CPU, of a `RewardModel` or a `CLIPIQA`; None is one for each thread of torch.

    Raises:
        ValueError: an argument outside of these, a name that names no reward, or a reward whose lower scores are
            better.
    """

    lower_better = False

    def __init__(
        self,
        reward: Reward | str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: str | None = None,
        graphs: bool = False,
        deterministic: bool = False,
        batch_size: int = 32,
        tile: int | None = None,
        lanes: int | None = None,
    ) -> None:
        if device is not None:
            check_device(device)
        if isinstance(reward, (str, os.PathLike)):
            reward = load_reward(os.fspath(reward), device=str(device or "cpu"))
        if not callable(reward):
            raise ValueError(f"reward: expected a reward or its name, got {type(reward).__name__}")
        check_higher_better(reward)
        place = torch.device(device) if device is not None else _device_of(reward)
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", torch.cuda.current_device())
        take_full_float32(place)
        if compile not in COMPILE:
            raise ValueError(f"compile: expected {', '.join(map(str, COMPILE))}, got {compile!r}")
        if dtype not in NAMED_DTYPES if isinstance(dtype, str) else dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype: expected {', '.join(DTYPES)} or a floating-point type, got {dtype!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if lanes is not None and lanes < 1:
            raise ValueError(f"lanes: expected at least 1, got {lanes}")
        if graphs and place.type != "cuda":
            raise ValueError(f"graphs: expected a CUDA device, got {place}")
        self.executor = Executor(
            reward,
            device=place,
            dtype=NAMED_DTYPES[dtype] if isinstance(dtype, str) else dtype,
            compile=compile,
            graphs=graphs,
            deterministic=deterministic,
            batch_size=batch_size,
            tile=tile,
        )
        self._parallel = place.type == "cpu" and isinstance(reward, (RewardModel, CLIPIQA))
        self._asked_lanes = lanes
        self._without_threads()
        _scorers.add(self)

    def _without_threads(self) -> None:
        self._lock = threading.Lock()
        self._lanes: Lanes | None = None
        self.executor.after_fork()
        self._device_thread: ThreadPoolExecutor | None = None
        self._async_thread: ThreadPoolExecutor | None = None

    @property
    def fingerprint(self) -> str:
        """Of the reward, in the type that it has here."""
        return self.executor.reward.fingerprint

    @property
    def takes(self) -> tuple[str, ...]:
        """What the reward takes beside images."""
        return tuple(getattr(self.executor.reward, "takes", ()))

    def __call__(self, images: Tensor, **context: Any) -> RewardOutput:
        """The reward of a batch (B,3,H,W) on the device, float in [0, 1] or uint8; see `Reward`.

        Raises:
            TypeError: a batch of other numbers. Values are not checked.
        """
        given = self._given(context)
        if self.executor.device.type != "cpu" or not len(images):
            return self.executor.batch(images, given)
        if not self.executor.deterministic:
            if self._parallel:
                return self.executor.batch(images, given)
            return self.lanes().submit(self.executor.batch, images, given).result()  # by the one thread that calls it
        _check_lengths(given, len(images))
        lanes = self.lanes()
        singles = [{name: value[i : i + 1] for name, value in given.items()} for i in range(len(images))]
        answers = [lanes.submit(self.executor.batch, images[i : i + 1], one) for i, one in enumerate(singles)]
        outputs = [answer.result() for answer in answers]
        maps = [output.map for output in outputs if isinstance(output.map, Tensor)]
        scores = torch.cat([output.score for output in outputs])
        return RewardOutput(scores, torch.cat(maps) if len(maps) == len(outputs) else None)

    def _given(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """What the reward takes of what a caller gave."""
        return {name: context[name] for name in self.takes if name in context}

    def _check_context(self, context: Mapping[str, Any], count: int | None) -> None:
        """Refuse what no reward takes, and what does not belong to each image."""
        if unknown := sorted(context.keys() - {*CONTEXT, *self.takes}):
            hint = "; Scorer itself has that argument" if unknown[0] in ("tile", "batch_size") else ""
            known = ", ".join(dict.fromkeys((*CONTEXT, *self.takes)))
            raise TypeError(f"{unknown[0]}: unknown argument, expected {known}{hint}")
        _check_lengths(self._given(context), count)

    def score(self, images: Any, **context: Any) -> RewardOutput:
        """Score images of any kind and size.

        Args:
            images: what `RewardModel.score` takes: a batch, one image, or a list of paths, PIL images, arrays, tensors.
            **context: what the reward takes beside them, as many as there are images, e.g. `prompts`; of `CONTEXT`,
                what it does not take is left out.

        Returns:
            As `RewardModel.score`: float32 on the CPU, in the order of the images; maps as (B,1,H,W) for a batch or one
            image, else a list of (1,H,W); None of a reward without one.

        Raises:
            ImageError: an image that cannot be read or used; the message names it.
            ValueError: what the reward takes is not as many as the images.
            TypeError: something else beside the images.
        """
        return self._score(images, context, self._now())

    def _score(self, images: Any, context: Mapping[str, Any], after: torch.cuda.Event | None) -> RewardOutput:
        items, stacked = _items(images)
        self._check_context(context, len(items))
        outcomes: list[Outcome] = []
        for found in self._stream(items, None, context, after):
            if isinstance(found, Exception):
                raise found
            outcomes.append(found)
        scores = torch.stack([o.score for o in outcomes]) if outcomes else torch.empty(0)
        maps = [o.map for o in outcomes if o.map is not None]
        if len(maps) < len(outcomes) or (not outcomes and not getattr(self.executor.reward, "has_map", False)):
            return RewardOutput(scores, None)
        return RewardOutput(scores, torch.stack(maps) if stacked else maps)

    def score_async(self, images: Any, **context: Any) -> Future[RewardOutput]:
        """`score` in the background; calls are answered in their order.

        A batch on the GPU may still be in the making on the caller's stream; it must not be changed afterwards.
        """
        with self._lock:
            if self._async_thread is None:
                self._async_thread = ThreadPoolExecutor(1, "finpercep-async")
            return self._async_thread.submit(self._score, images, context, self._now())

    def _now(self) -> torch.cuda.Event | None:
        """What the caller's stream has been given up to now: images on a GPU may still be in the making."""
        device = self.executor.device
        return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def stream(
        self, images: Iterable[Any], *, then: Callable[[Tensor, Outcome, int], Any] | None = None, **context: Any
    ) -> Iterator[Any]:
        """Outcomes of images in their order, as soon as they are ready; holds a bounded number of images.

        Args:
            images: paths, PIL images, arrays or tensors, or functions that give one, called where images are decoded;
                taken as they are needed. While a source has the next one in the making it holds back outcomes that are
                ready, and it must not wait for one: functions that give images do not.
            then: gives what is yielded in place of an `Outcome`, from the image (3,H,W), its outcome and its number;
                runs beside the computation.
            **context: see `score`.

        Returns:
            An iterator over, for each image, an `Outcome` (or what `then` gave), or the exception that the image met.

        Raises:
            ValueError: what the reward takes is not as many as the images, where these have a length.
            TypeError: something else beside the images.
        """
        self._check_context(context, len(images) if isinstance(images, Sequence) else None)
        return self._stream(images, then, context, self._now())

    def _stream(
        self,
        images: Iterable[Any],
        then: Callable[[Tensor, Outcome, int], Any] | None,
        context: Mapping[str, Any],
        after: torch.cuda.Event | None,
    ) -> Iterator[Any]:
        alone = isinstance(images, Sequence) and len(images) < self.lane_count and not self.executor.deterministic
        run = Run(self.executor, None if alone and self._parallel else self.lanes(), self._units(), then, after)
        room = self.lane_count
        pending: deque[Item] = deque()
        source, late = enumerate(images), not isinstance(images, (list, tuple))
        try:
            while True:
                while len(pending) < AHEAD * room and (
                    not pending or sum(i.pixels for i in pending) < AHEAD_PIXELS * room
                ):
                    index, image = next(source, (None, None))
                    if index is None:
                        break
                    given = {name: context[name][index] for name in self.takes if name in context}
                    pending.append(run.start(image, index, given, late=late))
                    if pending[0].done.done():  # it does not wait for a slow source
                        break
                if not pending:
                    return
                yield run.result(pending[0], pending)
                pending.popleft()
        finally:
            for item in pending:
                item.reading.cancel()

    @property
    def lane_count(self) -> int:
        """Images that are worked on at once, or threads that decode for a GPU."""
        if self.executor.device.type != "cpu":
            return max(1, min(DECODERS, os.cpu_count() or 1))
        return (self._asked_lanes or torch.get_num_threads()) if self._parallel else 1

    def lanes(self) -> Lanes:
        """The threads, made on first use."""
        with self._lock:
            if self._lanes is None:
                alone = self._parallel or self.executor.deterministic or self.executor.device.type != "cpu"
                threads = 1 if alone else torch.get_num_threads()
                self._lanes = Lanes(self.lane_count, threads)
            return self._lanes

    def _units(self) -> ThreadPoolExecutor | None:
        """The one thread that keeps a GPU busy; on a CPU whoever decodes a batch's last image computes it."""
        with self._lock:
            if self._device_thread is None and self.executor.device.type != "cpu":
                self._device_thread = ThreadPoolExecutor(2, "finpercep-device")  # one launches while one waits
            return self._device_thread

    def close(self) -> None:
        """End the threads, once what was given to them is done. The scorer can be used again, and goes on in others."""
        # Never waits under the lock, which what is in progress takes as well. In the order in which one feeds the next.
        with self._lock:
            calls, self._async_thread = self._async_thread, None
        if calls is not None:
            calls.shutdown()
        with self._lock:
            lanes, device = self._lanes, self._device_thread
            self._device_thread = None
        if lanes is not None:
            lanes.close()
        if device is not None:
            device.shutdown()
            if lanes is not None:
                lanes.close()  # the last batches gave them what comes after a score


def _items(images: Any) -> tuple[Sequence[Any], bool]:
    """Separate images, and whether maps are to be stacked."""
    if isinstance(images, (list, tuple)):
        return images, False
    if isinstance(images, Tensor) and images.is_cuda and images.dim() in (3, 4) and len(images):
        if images.dim() == 3:
            return [images], True
        rows = images.permute(0, 3, 1, 2) if images.shape[1] != 3 and images.shape[3] == 3 else images
        return list(rows), True  # views: what computes here would do so on the caller's stream, behind our event
    return as_images(images)


def _check_lengths(context: Mapping[str, Any], count: int | None) -> None:
    """Refuse what does not belong to each image; a text would be taken letter by letter."""
    for name, value in context.items():
        if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
            raise ValueError(f"{name}: expected one for each image, got a single {type(value).__name__}")
        if count is not None and len(value) != count:
            raise ValueError(f"{name}: expected {count}, one for each image, got {len(value)}")


def _device_of(reward: Any) -> torch.device:
    parameters = reward.parameters() if isinstance(reward, torch.nn.Module) else ()
    return next((p.device for p in parameters), torch.device("cpu"))
