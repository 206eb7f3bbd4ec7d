"""`Scorer`: the values of `RewardModel.score`, in the caller's order, whatever is given and however it is batched."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import finpercep
from finpercep import RewardModel, RewardOutput, Scorer
from finpercep.engine import executor as executor_module
from finpercep.engine.executor import Outcome
from finpercep.engine.run import Run
from finpercep.io import image_files, pil_images
from finpercep.io.images import ImageError
from finpercep.io.pictures import as_picture, save_image
from finpercep.rewards import StageReward, load_reward

Photo = Callable[..., Tensor]


@pytest.fixture(scope="module")
def scorer(small_model: RewardModel) -> Iterator[Scorer]:
    made = Scorer(small_model, lanes=2)
    yield made
    made.close()


@pytest.fixture
def mixed(make_photo: Photo, tmp_path: Path) -> list[Any]:
    """Of every kind, in sizes that come again."""
    photos = [(make_photo(24 + 8 * (i % 3), 40, i) * 255).round().to(torch.uint8) for i in range(9)]
    path = save_image(as_picture(photos[0]), tmp_path / "a.png")
    array = photos[1].permute(1, 2, 0).numpy()
    return [path, array, as_picture(photos[2]), str(path), photos[4].float() / 255, *photos[5:], np.zeros((1, 3), "u1")]


def assert_same(found: RewardOutput, expected: RewardOutput) -> None:
    assert found.score.dtype == torch.float32
    torch.testing.assert_close(found.score, expected.score, rtol=0, atol=2e-6)
    assert found.map is not None
    assert expected.map is not None
    assert len(found.map) == len(expected.map)
    for one, other in zip(found.map, expected.map, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own(small_model: RewardModel, make_photo: Photo) -> None:
    """Whatever was going on in the one it was forked from, a lock that somebody held included."""
    fork = multiprocessing.get_context("fork")
    made, photo = Scorer(small_model, lanes=1), make_photo()
    expected = made.score([photo]).score.item()
    assert made.score_async([photo]).result().score.item() == expected
    results, answer = fork.Pipe(duplex=False)
    child = fork.Process(
        target=lambda: answer.send([made.score([photo]).score.item(), made.score_async([photo]).result().score.item()]),
        daemon=True,
    )
    with made._lock:
        child.start()
    found = results.recv() if results.poll(60) else None
    child.kill()
    made.close()
    assert found == [expected, expected]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_forked_while_files_are_read_and_graphs_are_compiled(
    small_model: RewardModel, make_photo: Photo, tmp_path: Path
) -> None:
    """Nobody is there to give back what a thread of the other process holds."""
    save_image(as_picture(make_photo()), tmp_path / "a.png")
    made = Scorer(small_model, lanes=1, compile="default")
    made.executor._call = made.executor._alone = made.executor._view  # what takes long is not what is tested
    fork = multiprocessing.get_context("fork")
    results, answer = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: answer.send(made.score([tmp_path / "a.png"]).score.item()), daemon=True)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as locks:
            for lock in (*pil_images._decoding, made.executor._compiles):
                locks.enter_context(lock)
            with image_files.PILLOW_STATE:
                held.set()
                time.sleep(0.2)  # the fork waits for this one
            release.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    child.start()
    release.set()
    holder.join()
    found = results.recv() if results.poll(60) else None
    child.kill()
    made.close()
    assert found == small_model.score([tmp_path / "a.png"]).score.item()


def test_what_no_reward_takes_is_refused(scorer: Scorer, photo: Tensor) -> None:
    expected = scorer.score([photo]).score
    assert torch.equal(scorer.score([photo], prompts=["left out"], lr=[photo]).score, expected)
    for call in (scorer.score, scorer.stream):
        with pytest.raises(TypeError, match=r"^prompt: unknown argument, expected lr, prompts, metadata$"):
            call([photo], prompt=["a"])
        with pytest.raises(TypeError, match=r"^tile: unknown argument, .*; Scorer itself has that argument$"):
            call([photo], tile=[64])


def test_a_reward_of_somebody_is_called_by_one_thread_at_a_time(photo: Tensor) -> None:
    """By `__call__` as by `score`; from `then`, which runs where the reward is called, at once."""
    inside, most = [0], [0]

    class Slow:
        has_map = False
        fingerprint = "slow"

        def __call__(self, images: Tensor) -> RewardOutput:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1
            return RewardOutput(images.flatten(1).mean(1).float(), None)

    with closing(Scorer(Slow())) as made, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(made, photo[None]) for _ in range(4)] + [made.score_async([photo])]
        scores = [answer.result(60).score for answer in answers]
        again = list(made.stream([photo] * 2, then=lambda image, found, number: made(image[None]).score))
    assert most == [1]
    assert all(torch.equal(score, scores[0]) for score in scores + again)


@pytest.mark.parametrize(("name", "short"), [("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "fp32")])
def test_types_have_torchs_names_too(small_model: RewardModel, name: str, short: str) -> None:
    found, expected = (Scorer(small_model, dtype=one).executor for one in (name, short))
    types = [{p.dtype for p in one.reward.parameters()} for one in (found, expected)]
    assert types[0] == types[1]
    assert getattr(torch, name) in types[0]
    assert found.reward.fingerprint == expected.reward.fingerprint


def test_any_images_in_the_callers_order(scorer: Scorer, small_model: RewardModel, mixed: list[Any]) -> None:
    found = scorer.score(mixed)
    assert isinstance(found.map, list)
    assert_same(found, small_model.score(mixed))
    assert len({round(float(s), 6) for s in found.score[4:9]}) == 5  # they differ, so an order is to be seen


def test_a_batch_and_one_image_give_stacked_maps(scorer: Scorer, small_model: RewardModel, photo: Tensor) -> None:
    for images in (torch.stack([photo, photo.flip(2)]), photo, (photo * 255).byte().permute(1, 2, 0).numpy()):
        found = scorer.score(images)
        assert isinstance(found.map, Tensor)
        assert_same(found, small_model.score(images))


def test_nothing_gives_nothing(scorer: Scorer) -> None:
    found = scorer.score([])
    assert found.score.shape == (0,)
    assert found.map == []


def test_a_bad_image_is_named_and_the_scorer_goes_on(scorer: Scorer, photo: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone.png: expected an image file, got no such file"):
        scorer.score([photo, tmp_path / "gone.png", photo])
    with pytest.raises(ImageError, match=r"^images\[1\]: expected values in \[0, 1\]"):
        scorer.score([photo, photo * 9])
    assert scorer.score([photo]).score.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4, 4), (0,), (), (3, 0, 4)])
def test_an_empty_tensor_is_one_bad_image_among_others(scorer: Scorer, photo: Tensor, shape: tuple[int, ...]) -> None:
    before, found, after = scorer.stream([photo, torch.empty(shape), photo])
    assert isinstance(found, ImageError)
    assert str(found).startswith("images[1]: expected ")
    assert before.score == after.score


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_one_pil_image_given_several_times(
    scorer: Scorer, make_photo: Photo, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_image(as_picture((make_photo(64, 48) * 255).round().to(torch.uint8)), tmp_path / "a.png")
    Image.open(path).save(tmp_path / f"b.{suffix}")
    with Image.open(tmp_path / f"b.{suffix}") as image:
        kind, load, inside = type(image), type(image).load, []

        def decoding(this: Any) -> Any:
            if not this.tile:
                return load(this)
            inside.append(threading.current_thread())
            assert len(inside) == 1  # Pillow's images are no place for two threads
            time.sleep(0.1)
            loaded = load(this)
            inside.clear()
            return loaded

        monkeypatch.setattr(kind, "load", decoding)
        scores = [outcome.score for outcome in scorer.stream([image] * 6)]
    assert scores == [scores[0]] * 6


def test_a_pil_image_that_cannot_be_decoded_is_one_bad_image(scorer: Scorer, photo: Tensor, tmp_path: Path) -> None:
    path = save_image(as_picture(torch.zeros(3, 64, 64, dtype=torch.uint8) + 7), tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:60])
    with Image.open(path) as image:
        before, found, after = scorer.stream([photo, image, photo])
    assert isinstance(found, ImageError)
    assert str(found).startswith("images[1]: expected a readable image, got ")
    assert before.score == after.score


def test_large_images_go_through_in_tiles(small_model: RewardModel, make_photo: Photo) -> None:
    image = make_photo(200, 72)
    scorer = Scorer(small_model, tile=64)
    assert_same(scorer.score([image]), small_model.score([image], tile=64))


@pytest.mark.parametrize("model", ["finpercep-tiny", "finpercep-small"])
def test_deterministic_is_the_same_bits(model: str, make_photo: Photo) -> None:
    """Alone, in a batch, at any position, with any number of lanes and of the caller's threads."""
    reward = RewardModel.from_pretrained(model)
    images = [make_photo(64, 96, seed) for seed in range(5)]
    before = torch.get_num_threads()
    found = []
    try:
        for lanes, threads, order in ((1, 1, [0, 1, 2, 3, 4]), (2, 2, [4, 2, 0, 1, 3]), (3, 1, [3, 3, 1, 0, 2, 4])):
            torch.set_num_threads(threads)
            scorer = Scorer(reward, deterministic=True, lanes=lanes)
            together = scorer.score([images[i] for i in order])
            alone = [scorer.score([image]) for image in images]
            for position, i in enumerate(order):
                assert torch.equal(together.score[position], alone[i].score[0])
                assert torch.equal(together.map[position], alone[i].map[0])
            found.append(torch.cat([one.score for one in alone]))
            scorer.close()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_lanes_leave_the_callers_threads_alone(small_model: RewardModel, photo: Tensor) -> None:
    before = torch.get_num_threads()
    inside: list[int] = []
    hook = small_model.encoder.register_forward_hook(lambda *_: inside.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(4)
        Scorer(small_model, lanes=3).score([photo] * 6)
        assert set(inside) == {1}
        assert torch.get_num_threads() == 4
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [4]  # nor do threads that are made later begin with another number
    finally:
        hook.remove()
        torch.set_num_threads(before)


def test_small_images_of_one_size_go_through_together(small_model: RewardModel, make_photo: Photo) -> None:
    sizes: list[tuple[int, ...]] = []
    hook = small_model.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape)))
    try:
        Scorer(small_model, lanes=1, batch_size=3).score([make_photo(16, 16, i) for i in range(7)])
        Scorer(small_model, lanes=1).score([make_photo(300, 300, i) for i in range(2)])
    finally:
        hook.remove()
    assert sizes == [(3, 3, 16, 16)] * 2 + [(1, 3, 16, 16)] + [(1, 3, 300, 300)] * 2


def test_out_of_memory_halves_the_batch(
    small_model: RewardModel, make_photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [make_photo(16, 16, i) for i in range(8)]
    tried: list[int] = []
    scorer = Scorer(small_model, lanes=1, batch_size=8)
    whole = scorer.executor.batch

    def short_of_memory(given: Tensor, context: Any) -> RewardOutput:
        tried.append(len(given))
        if len(given) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(given, context)

    monkeypatch.setattr(scorer.executor, "batch", short_of_memory)
    assert_same(scorer.score(images), small_model.score(images))
    assert tried == [8, 4, 2, 2, 4, 2, 2]
    tried.clear()
    scorer.score(images)
    assert tried == [2, 2, 2, 2]  # it has learned


def test_no_memory_for_one_image_is_an_error(small_model: RewardModel, photo: Tensor, monkeypatch: Any) -> None:
    def none(*_: Any) -> RewardOutput:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    scorer = Scorer(small_model)
    monkeypatch.setattr(scorer.executor, "batch", none)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        scorer.score([photo, photo])


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.01), ("fp16", 0.003)])
def test_half_precision_is_near(small_model: RewardModel, photo: Tensor, dtype: str, tolerance: float) -> None:
    scorer = Scorer(small_model, dtype=dtype)
    found, expected = scorer.score(photo), small_model.score(photo)
    assert found.score.dtype == torch.float32
    assert 0 < (found.score - expected.score).abs().max() < tolerance
    assert next(small_model.parameters()).dtype == torch.float32  # a copy was made
    assert scorer.fingerprint != small_model.fingerprint


def test_async_is_score(scorer: Scorer, small_model: RewardModel, make_photo: Photo) -> None:
    batches = [torch.stack([make_photo(24, 32, 2 * i + j) for j in range(2)]) for i in range(4)]
    for answer, batch in zip([scorer.score_async(batch) for batch in batches], batches, strict=True):
        assert_same(answer.result(timeout=60), small_model.score(batch))


def test_threads_may_score_at_once(scorer: Scorer, small_model: RewardModel, make_photo: Photo) -> None:
    lists = [[make_photo(24, 32 + 8 * (j % 2), 10 * i + j) for j in range(4)] for i in range(4)]
    found: dict[int, RewardOutput] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, scorer.score(lists[i]))) for i in range(len(lists))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, images in enumerate(lists):
        assert_same(found[i], small_model.score(images))


def ended(thread: threading.Thread) -> bool:
    thread.join(20)
    return not thread.is_alive()


def test_closing_answers_what_was_asked_before(small_model: RewardModel, make_photo: Photo) -> None:
    scorer = Scorer(small_model, lanes=2)
    given = [make_photo(64, 48, i)[None] for i in range(3)]
    asked = [scorer.score_async(images) for images in given]
    closing = threading.Thread(target=scorer.close, daemon=True)
    closing.start()
    assert ended(closing)
    for images, found in zip(given, asked, strict=True):
        assert_same(found.result(20), small_model.score(images))


def test_closing_while_others_score(make_photo: Photo) -> None:
    begun = threading.Event()

    class Slow:
        lower_better, fingerprint = False, "slow"

        def __call__(self, images: Tensor) -> RewardOutput:
            begun.set()
            time.sleep(0.05)
            return RewardOutput(images.mean((1, 2, 3)), None)

    scorer, found = Scorer(Slow()), {}
    photos = [make_photo(16 + i, 16, i) for i in range(3)]  # of three sizes: they do not go through together

    def score(number: int) -> None:
        found[number] = scorer.score(photos).score

    threads = [threading.Thread(target=score, args=(i,), daemon=True) for i in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(20)
    scorer.close()
    assert all(ended(thread) for thread in threads)
    for scores in found.values():
        torch.testing.assert_close(scores, torch.stack([p.mean() for p in photos]))
    assert len(found) == 3
    scorer.close()


def test_a_run_goes_on_without_the_threads_that_were_ended(small_model: RewardModel, make_photo: Photo) -> None:
    scorer, photos = Scorer(small_model, lanes=2), [make_photo(24, 24 + i, i) for i in range(40)]
    stream = scorer.stream(photos)
    first = next(stream)
    scorer.close()
    found = torch.stack([first.score, *(outcome.score for outcome in stream)])
    torch.testing.assert_close(found, small_model.score(photos).score, rtol=0, atol=2e-6)
    scorer.close()

    ended_units = ThreadPoolExecutor(1)
    ended_units.shutdown()
    run = Run(scorer.executor, None, ended_units, None, None)
    item = run.start(photos[0], 0, {})
    assert torch.equal(run.result(item, [item]).score, scorer.score(photos[:1]).score[0])


def test_a_bounded_number_of_images_is_held(scorer: Scorer, make_photo: Photo) -> None:
    taken = 0

    def images() -> Iterator[Tensor]:
        nonlocal taken
        for i in range(200):
            taken += 1
            yield make_photo(16, 24, i)

    stream = scorer.stream(images())
    next(stream)
    assert taken <= 8 * 2
    assert sum(1 for _ in stream) == 199


def test_a_large_image_is_held_alone(scorer: Scorer, monkeypatch: pytest.MonkeyPatch, photo: Tensor) -> None:
    monkeypatch.setattr("finpercep.engine.scorer.AHEAD_PIXELS", photo[0].numel() // 2)
    started: list[int] = []
    stream = scorer.stream(started.append(i) or photo for i in range(5))  # type: ignore[func-returns-value]
    next(stream)
    assert started == [0]
    stream.close()


def test_other_rewards_get_their_context_one_call_at_a_time(make_photo: Photo) -> None:
    class Lengths:
        fingerprint = "lengths-1"
        takes = ("prompts", "lr")
        inside = 0

        def __call__(self, images: Tensor, *, prompts: list[str], lr: Tensor) -> RewardOutput:
            self.inside += 1
            assert self.inside == 1
            assert images.dtype == torch.float32
            score = torch.tensor([float(len(p)) for p in prompts]) + lr.mean((1, 2, 3))
            self.inside -= 1
            return RewardOutput(score, None)

    images = [make_photo(16, 24 + 8 * (i % 2), i) for i in range(6)]
    lr = [torch.full((3, 4, 4), i / 8) for i in range(6)]
    scorer = Scorer(Lengths())
    found = scorer.score(images, prompts=["x" * i for i in range(6)], lr=lr)
    assert found.score.tolist() == [i + i / 8 for i in range(6)]
    assert found.map is None
    assert scorer.takes == ("prompts", "lr")


def test_it_is_a_reward_itself(scorer: Scorer, small_model: RewardModel, photo: Tensor) -> None:
    with torch.no_grad():
        expected = small_model(photo[None])
    found = scorer(photo[None])
    assert torch.equal(found.score, expected.score)
    assert scorer.fingerprint == small_model.fingerprint
    stage = finpercep.Scorer(load_reward("finpercep-tiny"))
    assert stage(photo[None]).score.shape == (1,)


def test_integers_other_than_uint8_are_no_batch(scorer: Scorer, photo: Tensor) -> None:
    levels = (photo * 255).round()[None]
    torch.testing.assert_close(scorer(levels.byte()).score, scorer(levels / 255).score, rtol=0, atol=1e-6)
    for dtype in (torch.int64, torch.int32, torch.uint16, torch.bool):
        with pytest.raises(TypeError, match=rf"^images: expected float in \[0, 1\] or uint8, got {dtype}$"):
            scorer(levels.to(dtype))


def test_a_reward_by_the_path_of_its_folder(small_model: RewardModel, model_folder: Path, photo: Tensor) -> None:
    scorer = Scorer(model_folder)
    assert_same(scorer.score([photo]), small_model.score([photo]))
    scorer.close()
    with pytest.raises(ValueError, match=r"^reward: expected a reward or its name, got int$"):
        Scorer(3)  # type: ignore[arg-type]


def test_what_trains_is_scored_as_in_evaluation(photo: Tensor) -> None:
    torch.manual_seed(0)
    options: Any = {"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True}
    model = RewardModel(options, {"width": "light", "norm": True}).train()
    scorer = Scorer(model)
    assert_same(scorer.score([photo]), model.score([photo]))
    assert model.training
    with torch.no_grad():
        model.head.mlp[4].bias += 1  # the weights of now, not a copy
    assert_same(scorer.score([photo]), model.score([photo]))


def test_what_trains_later_is_scored_as_in_evaluation(photo: Tensor) -> None:
    torch.manual_seed(0)
    options: Any = {"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True}
    model = RewardModel(options, {"width": "light", "norm": True}).eval()
    scorer, expected = Scorer(model), model.score([photo])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    assert_same(scorer.score([photo]), expected)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # statistics of norms among them
    with torch.no_grad():
        model.head.mlp[4].bias += 1  # type: ignore[operator]
    assert_same(scorer.score([photo]), model.score([photo]))
    assert float(scorer.score([photo]).score) != float(expected.score)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "fast"}, r"^compile: expected None, default, reduce-overhead, max-autotune, got 'fast'$"),
        ({"dtype": "fp8"}, r"^dtype: expected fp32, bf16, fp16 or a floating-point type, got 'fp8'$"),
        ({"dtype": torch.int8}, r"^dtype: expected fp32, bf16, fp16 or a floating-point type, got torch.int8$"),
        ({"device": "gpu"}, r"^device: expected a device of this machine, got gpu: "),
        ({"device": "cuda:99"}, r"^device: expected a device of this machine, got cuda:99: "),
        ({"batch_size": 0}, r"^batch_size: expected at least 1, got 0$"),
        ({"lanes": 0}, r"^lanes: expected at least 1, got 0$"),
        ({"graphs": True}, r"^graphs: expected a CUDA device, got cpu$"),
        ({"tile": 1}, r"^tile: expected at least the encoder's stride of 8 pixels, got 1$"),
    ],
)
def test_refused(small_model: RewardModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scorer(small_model, **options)


def test_tiles_are_of_a_reward_model(small_model: RewardModel) -> None:
    with pytest.raises(ValueError, match=r"^tile: expected none for a reward that is no RewardModel, got 512$"):
        Scorer(StageReward(small_model), tile=512)


@pytest.mark.compile
def test_one_compilation_serves_all_sizes(
    small_model: RewardModel, make_photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    graphs = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))  # traced alone
    images = [make_photo(64 + 8 * i, 104 - 8 * i, i) for i in range(4)]
    scorer = Scorer(small_model, compile="default", lanes=2, deterministic=True)
    assert_same(scorer.score(images), small_model.score(images))
    assert graphs.frame_count == 1


def test_modes_are_those_of_torch() -> None:
    assert executor_module.COMPILE[1:] == ("default", "reduce-overhead", "max-autotune")
    assert {"reduce-overhead", "max-autotune"} <= set(torch._inductor.list_mode_options())


def test_deterministic_holds_for_calls_and_any_reward(photo: Tensor, make_photo: Photo) -> None:
    """On a CPU: called as a reward, each image alone; and whatever the reward, on one thread."""
    seen: list[tuple[int, int]] = []

    class Stands:
        fingerprint, takes, has_map = "stands-1", ("prompts",), True

        def __call__(self, images: Tensor, *, prompts: list[str]) -> RewardOutput:
            seen.append((len(images), torch.get_num_threads()))
            return RewardOutput(images.mean((1, 2, 3)) + len(prompts[0]), images.mean(1, keepdim=True))

    images = torch.stack([make_photo(16, 24, i) for i in range(3)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        scorer = Scorer(Stands(), deterministic=True)  # type: ignore[arg-type]
        scored = scorer.score(images, prompts=["", "a", "bb"])
        called = scorer(images, prompts=["", "a", "bb"])
    finally:
        torch.set_num_threads(before)
    assert seen == [(1, 1)] * 6
    assert torch.equal(scored.score, called.score)
    assert torch.equal(scored.map, called.map)
    torch.testing.assert_close(called.score, images.mean((1, 2, 3)) + torch.arange(3.0))
    scorer.close()


def test_autocast_of_the_caller_does_not_matter(small_model: RewardModel, make_photo: Photo) -> None:
    images = [make_photo(24, 32, i) for i in range(4)]
    scorer = Scorer(small_model, lanes=2)
    expected = scorer.score(images[:1]), scorer(images[0][None])
    with torch.autocast("cpu", torch.bfloat16):
        alone, several, called = scorer.score(images[:1]), scorer.score(images), scorer(images[0][None])
    assert torch.equal(alone.score, expected[0].score)
    assert torch.equal(called.score, expected[1].score)
    torch.testing.assert_close(several.score[:1], alone.score, rtol=0, atol=2e-6)
    scorer.close()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", "b"], r"^prompts: expected 3, one for each image, got 2$"),
        (["a"] * 4, r"^prompts: expected 3, one for each image, got 4$"),
        ("abc", r"^prompts: expected one for each image, got a single str$"),
        (None, r"^prompts: expected one for each image, got a single NoneType$"),
    ],
)
def test_what_belongs_to_the_images_is_as_many(prompts: Any, message: str, photo: Tensor) -> None:
    class Prompted:
        fingerprint, takes = "prompted-1", ("prompts",)

        def __call__(self, images: Tensor, *, prompts: list[str]) -> RewardOutput:
            return RewardOutput(torch.zeros(len(images)), None)

    scorer = Scorer(Prompted(), deterministic=True)  # type: ignore[arg-type]
    for call in (scorer.score, scorer.stream):
        with pytest.raises(ValueError, match=message):
            call([photo] * 3, prompts=prompts)
    with pytest.raises(ValueError, match=message):
        scorer(torch.stack([photo] * 3), prompts=prompts)
    with pytest.raises(ValueError, match=message):
        scorer.score_async([photo] * 3, prompts=prompts).result(20)
    scorer.close()


def test_a_reward_without_scores_is_an_error_and_no_wait():
    class Silent:
        fingerprint = "x"

        def __call__(self, images: Tensor) -> RewardOutput:
            return RewardOutput(images.flatten(1).mean(1)[:0], None)

    with closing(Scorer(Silent(), lanes=2)) as scorer:  # type: ignore[arg-type]
        images = [torch.rand(3, 16, 16) for _ in range(3)]
        with pytest.raises(ValueError, match=r"reward: expected scores \(3,\) for 3 images, got \(0,\)"):
            scorer(torch.stack(images))
        with pytest.raises(ValueError, match="expected scores"):
            scorer.score(images)


def test_a_stream_does_not_wait_for_a_slow_source(small_model: RewardModel, make_photo: Photo) -> None:
    """What is ready comes before all images that may be held at once have been taken."""
    taken: list[int] = []

    def slow() -> Iterator[Tensor]:
        for i in range(12):
            time.sleep(0.05)
            taken.append(i)
            yield make_photo(320, 320, i)

    scorer = Scorer(small_model, lanes=2)
    stream = scorer.stream(slow())
    next(stream)
    assert len(taken) < 12
    assert len(list(stream)) == 11
    scorer.close()


def test_what_comes_after_a_score_is_not_for_the_threads_that_score(small_model: RewardModel, photo: Tensor) -> None:
    """As on a GPU: order and errors stay, and nothing is left running when the scorer is closed."""
    scorer = Scorer(small_model, lanes=2)
    scorer._units = lambda: units  # type: ignore[method-assign]

    def then(image: Tensor, outcome: Outcome, number: int) -> tuple[int, str]:
        if number == 1:
            raise KeyError("second")
        time.sleep(0.05 if number == 0 else 0)  # the first is done last
        return number, threading.current_thread().name

    with ThreadPoolExecutor(2, "units") as units:
        first, second, *rest = scorer.stream([photo] * 4, then=then)
    scorer.close()
    assert isinstance(second, KeyError)
    assert [number for number, _ in (first, *rest)] == [0, 2, 3]
    assert all(name.startswith("finpercep") for _, name in (first, *rest))


def test_a_reward_that_ends_the_program_leaves_nobody_waiting() -> None:
    class Ends:
        fingerprint = "x"

        def __call__(self, images: Tensor) -> RewardOutput:
            raise SystemExit(3)

    scorer = Scorer(Ends())  # type: ignore[arg-type]
    answer = scorer.score_async([torch.rand(3, 16, 16) for _ in range(5)])  # some in one group, some in the next
    with pytest.raises(SystemExit):
        answer.result(20)
    scorer.close()
