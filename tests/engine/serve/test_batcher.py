"""Many callers, one scorer: their own results in their order; a full queue says so; nobody waits forever."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from finpercep import RewardModel, Scorer
from finpercep.engine.executor import Outcome
from finpercep.engine.serve.batcher import Batcher, Busy, Failed
from finpercep.io.images import ImageError


def score_of(image: Tensor, outcome: Outcome) -> float:
    return float(outcome.score)


class Gate:
    """In place of a `Scorer`: answers once it is let, or fails."""

    def __init__(self) -> None:
        self.open, self.began = threading.Event(), threading.Event()
        self.scored: list[int] = []
        self.broken = False

    def stream(self, images: Iterable[Any], *, then: Callable[..., Any]) -> Iterator[Any]:
        for index, image in enumerate(images):
            self.began.set()
            assert self.open.wait(20)
            if self.broken:
                raise RuntimeError("the scorer is broken")
            self.scored.append(image)
            yield then(image, Outcome(torch.tensor(float(image)), None), index)


def test_many_callers_get_their_own_scores(small_model: RewardModel, make_photo: Callable[..., Tensor]) -> None:
    photos = [make_photo(24 + 8 * (i % 3), 32, i) for i in range(24)]
    expected = small_model.score(photos).score.tolist()
    batcher = Batcher(Scorer(small_model, lanes=2), most=100)

    async def caller(numbers: list[int]) -> None:
        found = await batcher.score([photos[i] for i in numbers], score_of)
        assert found == pytest.approx([expected[i] for i in numbers], abs=2e-6)

    async def all_at_once() -> None:
        calls = [[i] for i in range(24)] + [[3, 1, 2], [23, 0], list(range(12))]
        await asyncio.gather(*(caller(numbers) for numbers in calls))
        assert batcher.waiting == 0

    for _ in range(2):  # a loop of its own each time: idle threads start again
        asyncio.run(all_at_once())
    batcher.close()


def test_a_bad_image_fails_its_own_call_alone(small_model: RewardModel, photo: Tensor) -> None:
    batcher = Batcher(Scorer(small_model, lanes=2), most=100)

    async def calls() -> list[Any]:
        good, bad = [photo], [photo, photo * 9]
        return await asyncio.gather(
            *(batcher.score(given, score_of) for given in (good, bad, good)), return_exceptions=True
        )

    first, failed, last = asyncio.run(calls())
    assert first == last == pytest.approx(small_model.score([photo]).score.tolist(), abs=2e-6)
    assert isinstance(failed, Failed)
    assert failed.number == 2
    assert isinstance(failed.error, ImageError)


def test_a_full_queue_is_busy_and_empties(small_model: RewardModel) -> None:
    gate = Gate()
    batcher = Batcher(gate, most=3)  # type: ignore[arg-type]

    async def calls() -> None:
        first = asyncio.create_task(batcher.score([1], score_of))
        second = asyncio.create_task(batcher.score([2], score_of))
        await asyncio.sleep(0)
        await asyncio.to_thread(gate.began.wait, 20)
        while batcher.waiting:  # both streams have begun
            await asyncio.sleep(0.01)
        third = asyncio.create_task(batcher.score([3, 4], score_of))
        await asyncio.sleep(0)
        assert batcher.waiting == 2
        with pytest.raises(Busy):
            await batcher.score([5, 6], score_of)
        assert batcher.waiting == 2  # none of a call that was refused
        gate.open.set()
        assert await asyncio.gather(first, second, third) == [[1.0], [2.0], [3.0, 4.0]]
        assert await batcher.score([7, 8, 9], score_of) == [7.0, 8.0, 9.0]

    asyncio.run(asyncio.wait_for(calls(), 30))
    batcher.close()


def test_who_goes_away_is_not_computed() -> None:
    gate = Gate()
    batcher = Batcher(gate, most=10)  # type: ignore[arg-type]

    async def calls() -> None:
        held = [asyncio.create_task(batcher.score([i], score_of)) for i in (1, 2)]
        await asyncio.sleep(0)
        while batcher.waiting:
            await asyncio.sleep(0.01)
        gone = asyncio.create_task(batcher.score([3, 4], score_of))
        stays = asyncio.create_task(batcher.score([5], score_of))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.open.set()
        await asyncio.gather(*held, stays)

    asyncio.run(asyncio.wait_for(calls(), 30))
    batcher.close()
    assert sorted(gate.scored) == [1, 2, 5]


def test_who_goes_away_holds_neither_room_nor_memory() -> None:
    """While the scorer is busy, too: their bytes do not count any more."""

    class Picture:
        pass

    gate = Gate()
    batcher = Batcher(gate, most=3)  # type: ignore[arg-type]

    async def calls() -> None:
        held = [asyncio.create_task(batcher.score([i], score_of)) for i in (1, 2)]
        await asyncio.sleep(0)
        while batcher.waiting:
            await asyncio.sleep(0.01)
        pictures = [Picture(), Picture()]
        left = [weakref.ref(picture) for picture in pictures]
        gone = asyncio.create_task(batcher.score(pictures, score_of))
        stays = asyncio.create_task(batcher.score([5], score_of))
        await asyncio.sleep(0)
        assert batcher.waiting == 3
        gone.cancel()
        await asyncio.wait([gone])
        del gone, pictures
        gc.collect()
        assert batcher.waiting == 1
        assert [ref() for ref in left] == [None, None]
        more = asyncio.create_task(batcher.score([6, 7], score_of))  # not `Busy`
        await asyncio.sleep(0)
        gate.open.set()
        assert await asyncio.gather(*held, stays, more) == [[1.0], [2.0], [5.0], [6.0, 7.0]]

    asyncio.run(asyncio.wait_for(calls(), 30))
    batcher.close()


def test_a_broken_scorer_is_an_error_of_all_that_it_took_and_of_none_after() -> None:
    gate = Gate()
    gate.broken = True
    gate.open.set()
    batcher = Batcher(gate, most=10)  # type: ignore[arg-type]

    async def calls() -> None:
        found = await asyncio.gather(*(batcher.score([i], score_of) for i in range(4)), return_exceptions=True)
        assert [str(error) for error in found] == ["image 1: the scorer is broken"] * 4
        gate.broken = False
        assert await batcher.score([7], score_of) == [7.0]

    asyncio.run(asyncio.wait_for(calls(), 30))
    batcher.close()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("the device is broken"), "the device is broken"),
        (SystemExit(3), "the reward raised SystemExit(3)"),
    ],
)
def test_a_scorer_that_takes_nothing_any_more_answers_with_its_error(error: BaseException, message: str) -> None:
    """As on a device that is broken: whoever waits would wait forever, and no failure would be counted."""

    class Broken:
        asked = 0

        def stream(self, images: Iterable[Any], *, then: Callable[..., Any]) -> Iterator[Any]:
            self.asked += 1
            raise error

    scorer: Any = Broken()
    batcher = Batcher(scorer, most=10)

    async def ask() -> list[Any]:
        calls = [asyncio.wait_for(batcher.score([i, i + 1], score_of), 20) for i in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(ask())
    assert [str(error) for error in found] == [f"image 1: {message}"] * 3
    assert batcher.waiting == 0
    batcher.close()
    assert scorer.asked <= 6  # once for each image at most: each attempt answers one
