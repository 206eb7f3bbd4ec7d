"""CUDA graphs: a reward captured once for each shape of its batch, and replayed without launching its kernels again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finpercep.models.output import RewardOutput

__all__ = ["Graphs", "capture"]

Replay = Callable[[Tensor], RewardOutput]
WARMUP = 3
_capturing = threading.Lock()
"""One capture at a time, of all `Graphs`, and no wait for a device meanwhile, which would break it."""


class Graphs:
    """A reward as graphs, one for each shape and type of a batch; the `keep` used last are kept.

    Args:
        reward: called with a batch, answers a `RewardOutput`; without host synchronization.
        keep: a graph holds the memory of its call.
        stream: gives, to these graphs, a stream to capture on that nothing else uses; asked once for each stream that
            replays: graphs of one capture stream share a workspace of cuBLAS, and must not run at the same time.
        capture: makes a replay from the reward and an example; `capture` by default.
    """

    def __init__(
        self,
        reward: Callable[[Tensor], RewardOutput],
        *,
        keep: int = 16,
        stream: Callable[[object], torch.cuda.Stream] | None = None,
        capture: Callable[..., Replay] | None = None,
    ) -> None:
        self.reward, self.keep, self._stream_for = reward, keep, stream
        # Of each replay stream. Its graphs run one after the other, in the same memory.
        self._pools: dict[Any, tuple[Any, torch.cuda.Stream | None]] = {}
        self._capture = capture or self._with_pool
        self._replays: OrderedDict[Any, Replay] = OrderedDict()
        self._lock = threading.Lock()  # a graph has one input

    def __call__(self, images: Tensor) -> RewardOutput:
        stream = torch.cuda.current_stream(images.device).cuda_stream if images.is_cuda else 0
        key = (tuple(images.shape), images.dtype, images.device, stream)  # streams would meet in the graph's memory
        with self._lock:
            if key not in self._replays:
                with _capturing:
                    self._add(key, images)
            self._replays.move_to_end(key)
            return self._replays[key](images)

    def _add(self, key: Any, images: Tensor) -> None:
        """Capture a graph, in place of the one that was used longest ago where there is no room."""
        if len(self._replays) >= self.keep:
            if images.is_cuda:
                torch.cuda.synchronize(images.device)  # it may still run
            self._replays.popitem(last=False)
        self._replays[key] = self._capture(self.reward, images)

    def _with_pool(self, reward: Callable[[Tensor], RewardOutput], example: Tensor) -> Replay:
        stream = torch.cuda.current_stream(example.device)
        if stream not in self._pools:
            own = None if self._stream_for is None else self._stream_for(self)
            self._pools[stream] = torch.cuda.graph_pool_handle(), own
        return capture(reward, example, *self._pools[stream])


def capture(
    reward: Callable[[Tensor], RewardOutput],
    example: Tensor,
    pool: Any = None,
    stream: torch.cuda.Stream | None = None,
) -> Replay:
    """A CUDA graph of `reward` for batches like `example`; its answers are copies, which later replays leave alone.

    Args:
        pool: of `torch.cuda.graph_pool_handle`: memory that it shares with graphs that never run at the same time.
        stream: to capture on, which nothing else uses meanwhile; None takes one of torch's.
    """
    given = example.clone()
    stream = stream or torch.cuda.Stream(example.device)
    stream.wait_stream(torch.cuda.current_stream(example.device))
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):  # what allocates or chooses algorithms on first use must not do so in the graph
            reward(given)
    torch.cuda.current_stream(example.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads decode and upload meanwhile. The stream is ours: torch's own is of the device that was first.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        answer = reward(given)

    def replay(images: Tensor) -> RewardOutput:
        given.copy_(images)
        graph.replay()
        found = answer.map
        return RewardOutput(answer.score.clone(), found.clone() if isinstance(found, Tensor) else None)

    return replay
