"""Sizes of batches, halves of them, and graphs by shape: what can be seen without a GPU."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from finpercep import RewardOutput
from finpercep.engine import graphs as graphs_module
from finpercep.engine.batches import halving, is_out_of_memory, most_images, padded_count, padded_to, unpadded_count
from finpercep.engine.graphs import Graphs


def test_most_images() -> None:
    assert most_images(512 * 512, 32) == 1  # a CPU
    assert most_images(64 * 64, 32) == 16
    assert most_images(1, 32) == 32
    assert most_images(100, 32, free=10**6) == 1  # a GPU that has seen nothing yet: 4096 bytes for a pixel
    assert most_images(512 * 512, 32, free=10**11) == 32  # what is decoded while the first batch runs goes together
    assert most_images(100, 32, free=10**6, bytes_per_pixel=1000) == 7
    assert most_images(100, 32, free=1, bytes_per_pixel=1000) == 1


def test_padding() -> None:
    assert [padded_count(n, 8, full=False) for n in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]
    assert padded_count(5, 6, full=False) == 6
    assert padded_count(1, 8, full=True) == 8
    assert [unpadded_count(n, 24) for n in (1, 3, 8, 23, 24)] == [1, 2, 8, 16, 24]
    assert all(padded_count(unpadded_count(n, 24), 24, full=False) <= n for n in range(1, 25))
    batch = torch.arange(6.0).view(3, 2)
    assert padded_to(batch, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert padded_to(batch, 2) is batch


def test_halving_keeps_the_order_and_other_errors() -> None:
    def work(items: list[int], at_most: int = 3) -> list[int]:
        if len(items) > at_most:
            raise MemoryError
        return [10 * item for item in items]

    shrunk: list[int] = []
    assert halving(work, list(range(10)), shrunk.append) == [10 * i for i in range(10)]
    assert shrunk == [5, 2, 2]
    with pytest.raises(MemoryError):
        halving(lambda items: work(items, 0), [1, 2])

    def broken(items: list[int]) -> list[int]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        halving(broken, [1, 2])
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_graph_for_each_shape_and_the_oldest_goes() -> None:
    captured: list[tuple[int, ...]] = []

    def capture(reward: Callable[[Tensor], RewardOutput], example: Tensor) -> Callable[[Tensor], RewardOutput]:
        captured.append(tuple(example.shape))
        return reward

    graphs = Graphs(lambda images: RewardOutput(images.mean((1, 2, 3)), None), keep=2, capture=capture)
    a, b, c = (torch.rand(1, 3, side, 8) for side in (8, 16, 24))
    for images in (a, b, a, c, a, b):
        assert torch.equal(graphs(images).score, images.mean((1, 2, 3)))
    assert [shape[2] for shape in captured] == [8, 16, 24, 16]  # 16 was used last before 24 came
    graphs(a.double())
    assert len(captured) == 5


def test_two_scorers_do_not_capture_at_once() -> None:
    """What one waits for on the device would break the capture of the other."""
    inside, together = threading.Semaphore(1), []

    def capture(reward: Callable[[Tensor], RewardOutput], example: Tensor) -> Callable[[Tensor], RewardOutput]:
        together.append(not inside.acquire(blocking=False))
        time.sleep(0.05)
        inside.release()
        return reward

    every = [Graphs(lambda images: RewardOutput(images.sum((1, 2, 3)), None), capture=capture) for _ in range(4)]
    threads = [threading.Thread(target=graphs, args=(torch.zeros(1, 3, 8, 8),)) for graphs in every]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [False] * 4


def test_each_stream_that_replays_has_a_stream_and_memory_to_capture_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that run at the same time must not share what a capture stream has: cuBLAS's workspace."""
    captured, numbers, owners = [], itertools.count(), []

    def capture(reward: Callable[[Tensor], RewardOutput], example: Tensor, *place: Any) -> Any:
        captured.append(place)
        return reward

    def stream(owner: object) -> Any:
        owners.append(owner)
        return f"stream {next(numbers)}"

    monkeypatch.setattr(graphs_module, "capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: f"pool {next(numbers)}")
    graphs = Graphs(lambda images: RewardOutput(images.sum((1, 2, 3)), None), stream=stream)
    for current, side in (("a", 8), ("b", 8), ("a", 16)):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _, current=current: current)
        graphs._with_pool(graphs.reward, torch.zeros(1, 3, side, 8))
    assert captured == [("pool 1", "stream 0"), ("pool 3", "stream 2"), ("pool 1", "stream 0")]
    assert owners == [graphs, graphs]
