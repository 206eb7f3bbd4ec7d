"""`RemoteReward` over a real connection: the values of the reward itself, and patience with everything that passes."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finpercep import RewardModel, Scorer
from finpercep.engine.serve.service import Answer, Service, digest
from finpercep.engine.serve.settings import ServeSettings
from finpercep.io.images import ImageError
from finpercep.io.pictures import as_picture, save_image
from finpercep.rewards import RemoteReward, StageReward, call_reward, load_reward, service_client
from finpercep.rewards.remote import ServiceError
from tests.conftest import synthetic_photo
from tests.engine.serve.carried import carried

Photo = Callable[..., Tensor]
SETTINGS = ServeSettings(request_images=8)


@pytest.fixture(scope="module")
def service(small_model: RewardModel) -> Iterator[Service]:
    made = Service(Scorer(small_model, lanes=2, deterministic=True), SETTINGS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with carried(service) as place:
        yield place


@pytest.fixture
def make_photo() -> Photo:
    """Values that an 8-bit file holds: this model would see others."""
    return lambda *given: (synthetic_photo(*given) * 255).round() / 255


@pytest.fixture
def photo(make_photo: Photo) -> Tensor:
    return make_photo()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(service_client, "LONGEST_WAIT", 0.05)


@pytest.mark.parametrize("maps", [None, "fp16"])
def test_an_empty_batch_is_answered_without_a_request(
    url: str, small_model: RewardModel, maps: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward, batch = RemoteReward(url, maps=maps), torch.empty(0, 3, 40, 56)
    monkeypatch.setattr(reward, "_request", lambda *_: pytest.fail("asked"))
    expected = small_model(batch)
    for found in (reward(batch), reward(batch.to(torch.uint8))):
        assert found.score.shape == expected.score.shape == (0,)
        assert found.score.dtype == torch.float32
        assert (found.map is None) == (maps is None)
        assert found.map is None or found.map.shape == expected.map.shape == (0, 1, 40, 56)


@pytest.mark.parametrize("transport", ["raw", "png"])
def test_it_is_a_reward_with_the_same_values(url: str, service: Service, make_photo: Photo, transport: str) -> None:
    batch = torch.stack([make_photo(40, 56, i) for i in range(5)])
    reward = RemoteReward(url, maps="fp16", transport=transport, images_per_request=2)
    found, expected = call_reward(reward, batch, {}), service.scorer.score(batch)
    assert torch.equal(found.score, expected.score)
    assert found.score.dtype == torch.float32
    assert isinstance(found.map, Tensor)
    assert torch.equal(found.map, expected.map.half().float())
    assert (reward.fingerprint, reward.has_map) == (service.scorer.fingerprint, True)
    reward.close()


def test_any_images_in_the_callers_order(url: str, service: Service, make_photo: Photo, tmp_path: Path) -> None:
    photos = [make_photo(24 + 8 * (i % 3), 40, i) for i in range(7)]
    path = save_image(as_picture(photos[0]), tmp_path / "a.png")
    given: list[Any] = [path, as_picture(photos[1]), (photos[2] * 255).round().byte(), *photos[3:]]
    reward = RemoteReward(url, maps="png")
    found, expected = reward.score(given), service.scorer.score(given)
    assert torch.equal(found.score, expected.score)
    assert isinstance(found.map, list)
    for one, other in zip(found.map, expected.map, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.5 / 255 + 1e-6)
    with pytest.raises(ImageError, match=r"^images\[1\]: expected values in \[0, 1\]"):
        reward.score([photos[0], photos[0] * 9])
    assert reward.score([]).score.shape == (0,)
    reward.close()


def test_it_goes_where_rewards_go(url: str, service: Service, photo: Tensor) -> None:
    plain = load_reward(url)
    assert isinstance(plain, RemoteReward)
    found = plain(photo[None].requires_grad_())
    assert found.map.shape == (1, 1, *photo.shape[1:])
    assert not found.score.requires_grad
    stage = StageReward(RemoteReward(url, maps="fp16"))
    expected = StageReward(service.scorer)(photo[None]).score
    torch.testing.assert_close(stage(photo[None]).score, expected, rtol=0, atol=1e-3)
    plain.close()


def test_async_and_await(url: str, service: Service, make_photo: Photo) -> None:
    photos = [make_photo(32, 40, i)[None] for i in range(12)]
    expected = [float(service.scorer.score(photo).score) for photo in photos]
    reward = RemoteReward(url, connections=4)
    assert [float(answer.result(60).score) for answer in [reward.score_async(photo) for photo in photos]] == expected

    async def gathered() -> list[float]:
        return [float(one.score) for one in await asyncio.gather(*(reward.ascore(photo) for photo in photos))]

    assert asyncio.run(gathered()) == expected
    reward.close()


@pytest.mark.parametrize(
    "trouble",
    [
        "hang up",
        Answer(503, {"Retry-After": "1", "Content-Type": "application/json"}, b'{"error": "busy"}'),
        Answer(500, {"Content-Type": "text/plain"}, b"Internal Server Error"),  # a replica that has died
        Answer(502, {}, b""),
        Answer(408, {}, b""),
    ],
)
def test_what_passes_is_waited_for(service: Service, make_photo: Photo, trouble: Answer | str) -> None:
    """Every other request fails: nothing is lost, doubled or mixed up."""
    turn = itertools.count()
    lock = threading.Lock()

    def before(path: str) -> Answer | str | None:
        with lock:
            return trouble if path == "/score" and next(turn) % 2 == 0 else None

    batch = torch.stack([make_photo(32, 40, i) for i in range(10)])
    with carried(service, before) as place:
        reward = RemoteReward(place, images_per_request=1, connections=3)
        assert torch.equal(reward(batch).score, service.scorer.score(batch).score)
        reward.close()
    assert next(turn) > 15


def test_after_an_error_nobody_goes_on_asking(
    url: str, service: Service, make_photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads would keep the process, as after Ctrl-C, until their patience ends."""
    reward = RemoteReward(url, images_per_request=1, connections=2)
    asked, ended = threading.Barrier(2), []

    def insist(method: str, path: str, headers: dict[str, str], body: bytes, over: threading.Event) -> Any:
        asked.wait(60)
        if body == first:
            raise ServiceError("refused")
        ended.append(over.wait(60))
        raise ServiceError("given up")

    monkeypatch.setattr(reward._client, "insist", insist)
    images = torch.stack([make_photo(32, 40, i) for i in range(2)])
    first = (255 * images[0]).round().to(torch.uint8).numpy().tobytes()
    with pytest.raises(ServiceError, match="refused"):
        reward(images)
    reward.close()
    assert ended == [True]
    busy = Answer(503, {"Content-Type": "application/json"}, b'{"error": "busy"}')
    with carried(service, lambda path: busy if path == "/score" else None) as place:
        waiting, over = RemoteReward(place, patience=60), threading.Event()
        threading.Timer(0.3, over.set).start()
        with pytest.raises(ServiceError, match=r"got busy.*; nobody waits for it any more$"):
            waiting._client.insist("POST", "/score", {}, b"", over)
        waiting.close()


def test_patience_ends_with_the_last_reason(service: Service, photo: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    busy = Answer(503, {"Content-Type": "application/json"}, b'{"error": "busy: come back later"}')
    with carried(service, lambda path: busy if path == "/score" else None) as place:
        reward = RemoteReward(place, patience=0.2)
        with pytest.raises(
            ServiceError, match=rf"^{place}: expected an answer within 0.2 s, got busy: come back later"
        ):
            reward(photo[None])
        reward.close()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServiceError, match=rf"^{place}: expected an answer within 0.1 s, got .*refused"):
            RemoteReward(place, patience=0.1)
    assert [record.getMessage() for record in caplog.records] == [
        f"{place}: no answer yet ([Errno 111] Connection refused); trying for another 0 s"
    ]


def test_a_refusal_is_an_error_at_once(service: Service, make_photo: Photo) -> None:
    asked: list[str] = []
    too_large = Answer(413, {"Content-Type": "application/json"}, b'{"error": "pixels: expected fewer"}')
    with carried(service, lambda path: asked.append(path) or (too_large if path == "/score" else None)) as place:  # type: ignore[func-returns-value]
        reward = RemoteReward(place)
        with pytest.raises(ServiceError, match=rf"^{place}: expected an answer, got 413: pixels: expected fewer$"):
            reward(make_photo()[None])
        reward.close()
    assert asked == ["/info", "/score"]


def test_after_an_error_nothing_more_is_asked(service: Service, make_photo: Photo) -> None:
    asked: list[str] = []
    too_large = Answer(413, {"Content-Type": "application/json"}, b'{"error": "pixels: expected fewer"}')
    with carried(service, lambda path: asked.append(path) or (too_large if path == "/score" else None)) as place:  # type: ignore[func-returns-value]
        reward = RemoteReward(place, connections=1, images_per_request=1)
        with pytest.raises(ServiceError, match="got 413"):
            reward(torch.stack([make_photo()] * 20))
        reward.close()  # waits for what is still asked
    assert asked.count("/score") <= 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_asks_with_threads_of_its_own(url: str, service: Service, photo: Tensor) -> None:
    reward = RemoteReward(url)
    expected = reward(photo[None]).score
    fork = multiprocessing.get_context("fork")
    results, answer = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: answer.send(reward(photo[None]).score.tolist()), daemon=True)
    child.start()
    assert results.poll(60)
    assert results.recv() == expected.tolist()
    child.join()
    reward.close()


def test_a_token_opens(small_model: RewardModel, photo: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(Scorer(small_model), SETTINGS, token=digest("secret"))
    with carried(service) as place:
        with pytest.raises(ServiceError, match="got 401: Authorization: expected Bearer and the token"):
            RemoteReward(place)
        assert RemoteReward(place, token="secret")(photo[None]).score.shape == (1,)
        monkeypatch.setenv("FINPERCEP_TOKEN", "secret\n")  # as a file of secrets ends
        assert RemoteReward(place)(photo[None]).score.shape == (1,)
    service.close()


def test_another_reward_at_the_same_place_is_an_error(service: Service, photo: Tensor) -> None:
    with carried(service) as place:
        reward = RemoteReward(place)
        reward.fingerprint = "0" * 16
        with pytest.raises(
            ServiceError, match=f"expected the reward 0000000000000000 as before, got {service.scorer.fingerprint}"
        ):
            reward(photo[None])
        reward.close()


def test_other_servers_are_told_apart(service: Service) -> None:
    for found in (Answer(200, {}, b"<html>"), Answer(200, {}, b"[]"), Answer(200, {}, b"{}")):
        with (
            carried(service, lambda path, found=found: found) as place,
            pytest.raises(  # type: ignore[misc]
                ServiceError, match="expected a service of finpercep, got another answer"
            ),
        ):
            RemoteReward(place)


@pytest.mark.parametrize(
    ("place", "given", "message"),
    [
        ("ftp://host", {}, r"^url: expected http://host:port, got ftp://host$"),
        ("http://h:abc", {}, r"^url: expected http://host:port, got http://h:abc$"),
        ("http://h:99999", {}, r"^url: expected http://host:port, got http://h:99999$"),
        ("http://[::1", {}, r"^url: expected http://host:port, got http://\[::1$"),
        ("http://me:pw@host", {}, r"^url: expected http://host:port, got http://me:pw@host$"),
        ("http://host", {"maps": "jpeg"}, r"^maps: expected None, auto, png or fp16, got 'jpeg'$"),
        ("http://host", {"transport": "jpeg"}, r"^transport: expected raw or png, got 'jpeg'$"),
        ("http://host", {"connections": 0}, r"^connections: expected at least 1, got 0$"),
    ],
)
def test_refused(place: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemoteReward(place, **given)


def test_by_name_with_its_map(service: Service, photo: Tensor) -> None:
    with carried(service) as place:
        named, scores = load_reward(place), RemoteReward(place)
        assert (named.has_map, named.fingerprint) == (True, service.scorer.fingerprint)
        assert scores.fingerprint == service.scorer.fingerprint + "-score"
        here = StageReward(service.scorer.executor.reward)(photo[None]).score
        torch.testing.assert_close(StageReward(named)(photo[None]).score, here, atol=1e-3, rtol=0)
        assert StageReward(named).fingerprint != StageReward(scores).fingerprint


def test_maps_of_a_reward_without_one_are_refused() -> None:
    base = Service(Scorer(RewardModel({"type": "conv", "channels": [8, 16], "depths": [1, 1]}).eval()), SETTINGS)
    with (
        carried(base) as place,
        pytest.raises(ValueError, match=r"^maps: expected None of .*, whose reward has no map, got 'png'"),
    ):
        RemoteReward(place, maps="png")
    base.close()
