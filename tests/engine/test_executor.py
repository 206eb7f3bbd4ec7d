"""What `Executor` does on a GPU, as far as it goes without one: streams that only note what they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from finpercep import RewardModel, RewardOutput
from finpercep.engine import executor as executor_module
from finpercep.engine.executor import Executor


def make(reward: Any, **options: Any) -> Executor:
    defaults = {"dtype": None, "compile": None, "graphs": False, "deterministic": False, "batch_size": 8, "tile": None}
    return Executor(reward, device=torch.device("cpu"), **{**defaults, **options})


class Stream:
    """Notes the events that it waits for and records."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def record_event(self) -> Event:
        self.notes.append(f"{self.name} done")
        return Event(self.name, self.notes)

    def wait_event(self, event: Event) -> None:
        self.notes.append(f"{self.name} waits for {event.name}")


class Event:
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def synchronize(self) -> None:
        self.notes.append(f"host waits for {self.name}")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    @contextmanager
    def stream(which: Stream) -> Iterator[None]:
        found.append(f"on {which.name}")
        yield

    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    for name, value in {"memory_allocated": 100, "max_memory_allocated": 100 + 64 * 2 * 24 * 32}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: found.append("measured"))
    return found


def test_each_batch_goes_through_three_streams_in_order(
    small_model: RewardModel, make_photo: Callable[..., Tensor], notes: list[str]
) -> None:
    executor = make(small_model)
    executor._streams = tuple(Stream(name, notes) for name in ("uploads", "compute", "downloads"))  # type: ignore[misc]
    images = [make_photo(24, 32, i) for i in range(2)]
    found = executor.outcomes(images, [{}, {}], [Event("caller", notes)])  # type: ignore[list-item]
    assert notes == [
        *("on uploads", "uploads done"),
        *("on compute", "compute waits for caller", "compute waits for uploads", "measured", "compute done"),
        *("on downloads", "downloads waits for compute", "downloads done", "host waits for downloads"),
    ]
    expected = small_model.score(images)
    for one, score, degradation in zip(found, expected.score, expected.map, strict=True):
        torch.testing.assert_close(one.score, score, rtol=0, atol=2e-6)
        torch.testing.assert_close(one.map, degradation, rtol=0, atol=2e-6)
        assert one.map.untyped_storage().nbytes() == 4 * 24 * 32  # its own memory: not that of the pinned batch


def test_memory_is_measured_again_for_larger_batches_alone(small_model: RewardModel, notes: list[str]) -> None:
    executor = make(small_model)
    for pixels, measured in ((768, 1), (768, 1), (1536, 1), (1537, 2), (3000, 2), (4000, 3)):
        with executor._measuring(pixels):
            pass
        assert notes.count("measured") == measured
    assert executor._bytes_per_pixel == 64 * 2 * 24 * 32 / 4000


def test_deterministic_mode_leaves_tf32_and_comes_back() -> None:
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
    try:
        cudnn.allow_tf32, cudnn.benchmark = False, True
        with executor_module._deterministic_cudnn():
            assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == (True, False, False)
        assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == (before[0], True, False)
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before


def test_graphs_do_not_swallow_what_a_reward_takes(photo: Tensor) -> None:
    class WithPrompts:
        fingerprint = "prompts-1"
        takes = ("prompts",)

        def __call__(self, images: Tensor, *, prompts: list[str]) -> RewardOutput:
            return RewardOutput(torch.tensor([float(len(p)) for p in prompts]), None)

    executor = make(WithPrompts(), graphs=True)
    assert executor.batch(photo[None], {"prompts": ["three"]}).score.tolist() == [5.0]


def test_inductors_graphs_are_ours_on_a_gpu() -> None:
    """Inductor's belong to the thread that made the first one; a scorer has two that compute."""
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert [executor_module.compiled_as(mode, gpu) for mode in executor_module.COMPILE] == [
        (None, False),
        ("default", False),
        ("default", True),
        ("max-autotune-no-cudagraphs", True),
    ]
    assert [executor_module.compiled_as(mode, cpu) for mode in executor_module.COMPILE] == [
        (mode, False) for mode in executor_module.COMPILE
    ]
    assert "max-autotune-no-cudagraphs" in torch._inductor.list_mode_options()


def test_what_others_take_meanwhile_does_not_stay(small_model: RewardModel, notes: list[str], monkeypatch: Any) -> None:
    """Where memory bounds batches, each is looked at, and the least that one took for a pixel holds."""
    executor = make(small_model)
    for peak, expected in ((10_000, 9.9), (1_100, 1.0), (5_000, 1.0)):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_, peak=peak: peak)
        with executor._measuring(1000):
            pass
        executor._tight = True
        assert executor._bytes_per_pixel == expected
    assert notes.count("measured") == 3


def test_no_memory_for_one_size_bounds_pixels_and_not_smaller_images(small_model: RewardModel) -> None:
    executor = make(small_model, batch_size=32)
    executor._shrink(512 * 512, 1)
    assert executor._most_pixels == 512 * 512
    assert executor.capacity(16, 16) == 32
    assert executor.batch_size == 32


def test_deterministic_mode_says_which_batch_has_no_memory(
    small_model: RewardModel, photo: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch is padded to the same size: one image has no more room than many, and halves help nothing."""
    executor = make(small_model, deterministic=True)
    executor.padded = True
    tried: list[int] = []

    def none(*_: Any) -> RewardOutput:
        tried.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(executor, "_answer", none)
    size = " x ".join(map(str, photo.shape[-2:]))
    with pytest.raises(MemoryError, match=rf"^batch_size: expected one whose batches .* got 8 images of {size}, to"):
        executor.outcomes([photo, photo], [{}, {}])
    assert tried == [1]


def test_padding_does_not_exceed_what_memory_was_judged_for(small_model: RewardModel, monkeypatch: Any) -> None:
    """Memory for 7 images takes 4: 7 would be padded to 8."""
    for graphs, expected in ((False, 7), (True, 4)):
        executor = make(small_model, graphs=graphs, batch_size=32)
        monkeypatch.setattr(executor, "device", torch.device("cuda", 0))
        executor._bytes_per_pixel = 1000.0
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10_000_000, 0))
        for name in ("memory_reserved", "memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, lambda _: 0)
        assert executor.capacity(10, 100) == expected
