"""What the service answers, without a server around it: each right and each wrong request, and load."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finpercep import RewardModel, RewardOutput, Scorer, worst_mean
from finpercep.engine.serve import service as service_module
from finpercep.engine.serve.service import FAILURES, Answer, Request, Service, digest
from finpercep.engine.serve.settings import ServeSettings
from finpercep.io.images import ImageError
from finpercep.rewards import Mixture, StageReward
from tests.engine.serve.test_requests import FORM, RAW, form_of, png_of

SETTINGS = ServeSettings(request_images=4, request_megapixels=1, request_mb=1, queue_images=4, queue_mb=2)


class Meter:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.scored = 0

    def request(self, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.statuses.append(status)

    def images(self, count: int, waiting: int) -> None:
        self.scored += count


async def in_chunks(body: bytes, pause: float = 0) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1000):
        await asyncio.sleep(pause)
        yield body[start : start + 1000]


def score_request(body: bytes, kind: str = "image/png", maps: str | None = None, **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {"content-type": kind, "content-length": str(len(body)), **named}
    return Request("POST", "/score", {} if maps is None else {"maps": maps}, given, in_chunks(body))


def ask(service: Service, *requests: Request) -> list[Answer]:
    async def together() -> list[Answer]:
        return await asyncio.wait_for(asyncio.gather(*(service.answer(request) for request in requests)), 60)

    return asyncio.run(together())


def content(answer: Answer) -> Any:
    assert answer.headers["Content-Type"] == "application/json"
    return json.loads(answer.body)


@pytest.fixture(scope="module")
def service(small_model: RewardModel) -> Iterator[Service]:
    made = Service(Scorer(small_model, lanes=2, deterministic=True), SETTINGS)
    yield made
    made.close()


@pytest.fixture
def photo_array(photo_u8: Tensor) -> np.ndarray:
    return photo_u8.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["image/png", "form", "raw"])
def test_scores_are_those_of_the_scorer_bit_for_bit(
    service: Service, make_photo: Callable[..., Tensor], kind: str
) -> None:
    photos = [(make_photo(64, 96, i) * 255).byte() for i in range(1 if kind == "image/png" else 3)]
    files = [png_of(photo.permute(1, 2, 0).numpy()) for photo in photos]
    raw = torch.stack(photos).numpy().tobytes()
    request = {
        "image/png": lambda: score_request(files[0]),
        "form": lambda: score_request(form_of(*files), FORM),
        "raw": lambda: score_request(raw, RAW, x_shape="3,3,64,96"),
    }[kind]()
    (answer,) = ask(service, request)
    assert answer.status == 200
    found, expected = content(answer), service.scorer.score(photos)
    assert found["fingerprint"] == service.scorer.fingerprint
    assert [one["score"] for one in found["results"]] == [float(s) for s in expected.score]
    assert expected.map is not None
    for one, degradation in zip(found["results"], expected.map, strict=True):
        assert one["map_mean"] == float(degradation.mean())
        assert one["map_worst"] == float(worst_mean(degradation[None])[0])
        assert "map" not in one


def test_maps_on_request(service: Service, photo_array: np.ndarray) -> None:
    half, eight = ask(service, *(score_request(png_of(photo_array), maps=kind) for kind in ("fp16", "png")))
    expected = service.scorer.score(photo_array).map[0, 0]
    data = base64.b64decode(content(half)["results"][0]["map"])
    assert torch.equal(torch.from_numpy(np.frombuffer(data, "<f2").reshape(64, 96).copy()), expected.half())
    with Image.open(io.BytesIO(base64.b64decode(content(eight)["results"][0]["map"]))) as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
        assert np.array_equal(np.array(picture), (expected * 255).round().byte().numpy())


def test_a_model_without_a_map_gives_none(photo_array: np.ndarray) -> None:
    base = RewardModel({"type": "conv", "channels": [8, 16], "depths": [1, 1]}).eval()
    service = Service(Scorer(base), SETTINGS)
    plain, asked, about = ask(
        service,
        score_request(png_of(photo_array)),
        score_request(png_of(photo_array), maps="png"),
        Request("GET", "/info", {}, {}, in_chunks(b"")),
    )
    (result,) = content(plain)["results"]
    assert result == {"score": pytest.approx(base.score(photo_array).score.item()), "map_mean": None, "map_worst": None}
    assert content(asked)["results"][0]["map"] is None
    assert content(about)["has_map"] is False
    service.close()


def test_what_is_around_a_reward_has_its_map(small_model: RewardModel) -> None:
    class Plain:
        fingerprint = "plain-1"

        def __call__(self, images: Tensor) -> RewardOutput:
            return RewardOutput(images.flatten(1).mean(1), None)

    plain = Plain()
    for reward, has_map in (
        (StageReward(small_model), True),
        (Mixture({"score": (plain, 0.5), "stage": (StageReward(small_model), 0.5)}), True),
        (Scorer(small_model), True),
        (Mixture({"score": (plain, 1.0)}), False),
        (plain, False),
    ):
        service = Service(Scorer(reward), SETTINGS)
        (about,) = ask(service, Request("GET", "/info", {}, {}, in_chunks(b"")))
        assert content(about)["has_map"] is has_map, reward
        service.close()


def test_health_and_info(service: Service) -> None:
    health, about = ask(service, *(Request("GET", path, {}, {}, in_chunks(b"")) for path in ("/health", "/info")))
    assert (health.status, content(health)) == (200, {"status": "ok"})
    assert content(about) == {
        "fingerprint": service.scorer.fingerprint,
        "has_map": True,
        "limits": {"bytes": 10**6, "images": 4, "pixels": 10**6},
    }


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (Request("GET", "/", {}, {}, in_chunks(b"")), 404, "path: expected /health, /info, /score, got another"),
        (Request("GET", "/score/../../etc/passwd", {}, {}, in_chunks(b"")), 404, "path: expected /health"),
        (Request("GET", "/score", {}, {}, in_chunks(b"")), 405, "method: expected POST for /score, got another"),
        (Request("DELETE", "/info", {}, {}, in_chunks(b"")), 405, "method: expected GET for /info, got another"),
        (score_request(b"x", maps="jpeg"), 400, "maps: expected png or fp16, got 'jpeg'"),
        (score_request(b"x", content_length=""), 411, "Content-Length: expected the number of bytes, got none"),
        (score_request(b"x", content_length="-1"), 400, "Content-Length: expected a number, got '-1'"),
        (score_request(b"x", content_length="²"), 400, "Content-Length: expected a number"),
        (score_request(b"x", content_length="1000001"), 413, "body: expected at most 1000000 bytes, got 1000001"),
        (score_request(b"x" * 2000, content_length="1999"), 400, "body: expected 1999 bytes as announced, got 2000"),
        (score_request(b"x", content_length="2"), 400, "body: expected 2 bytes as announced, got 1"),
        (score_request(b"GIF89a"), 400, "image 1: expected a PNG, got other data"),
        (score_request(form_of(png_of(), b"?"), FORM), 400, "image 2: expected a PNG, got other data"),
        (score_request(b"{}", "application/json"), 415, "Content-Type: expected image/png"),
        (score_request(form_of(*[png_of()] * 5), FORM), 413, "images: expected at most 4 in a request, got 5"),
    ],
)
def test_wrong_requests(service: Service, request_: Request, status: int, reason: str) -> None:
    (answer,) = ask(service, request_)
    assert (answer.status, reason in content(answer)["error"]) == (status, True), answer.body
    assert service._held == 0


def test_a_damaged_image_is_named_and_its_neighbors_are_scored(service: Service, photo_array: np.ndarray) -> None:
    whole = png_of(photo_array)
    damaged = whole[:100] + bytes(300) + whole[400:]
    bad, good = ask(service, score_request(form_of(whole, damaged), FORM), score_request(whole))
    assert bad.status == 400
    assert content(bad)["error"].startswith("image 2: expected a readable ")
    assert good.status == 200


def test_a_token_is_asked_for_before_anything_else(small_model: RewardModel, photo_array: np.ndarray) -> None:
    service = Service(Scorer(small_model), SETTINGS, token=digest("secret"))
    body = png_of(photo_array)
    right, small, wrong, none, basic, health = ask(
        service,
        score_request(body, authorization="Bearer secret"),
        score_request(body, authorization="bearer  secret"),
        score_request(body, authorization="Bearer secre"),
        score_request(b"rubbish"),
        score_request(body, authorization="Basic secret"),
        Request("GET", "/health", {}, {}, in_chunks(b"")),
    )
    assert [answer.status for answer in (right, small, wrong, none, basic, health)] == [200, 200, 401, 401, 401, 200]
    assert wrong.headers["WWW-Authenticate"] == "Bearer"
    assert content(wrong) == {"error": "Authorization: expected Bearer and the token"}
    service.close()


def test_a_slow_client_is_told_so(small_model: RewardModel, photo_array: np.ndarray) -> None:
    service = Service(Scorer(small_model), SETTINGS)
    object.__setattr__(service.settings, "request_seconds", 0.05)
    body = png_of(photo_array)
    slow = score_request(body)._replace(body=in_chunks(body, pause=0.04))
    late, good = ask(service, slow, score_request(body))
    object.__setattr__(service.settings, "request_seconds", 30)
    assert (late.status, good.status) == (408, 200)
    assert service._held == 0
    service.close()


def test_busy_says_when_to_come_back(service: Service, photo_array: np.ndarray) -> None:
    body = form_of(*[png_of(photo_array)] * 4)
    answers = ask(service, *(score_request(body, FORM) for _ in range(12)))
    statuses = {answer.status for answer in answers}
    assert statuses == {200, 503}
    for answer in answers:
        if answer.status == 503:
            assert 1 <= int(answer.headers["Retry-After"]) <= 30
            assert content(answer)["error"].startswith("busy: expected to answer later, got a full queue")
    (after,) = ask(service, score_request(body, FORM))
    assert after.status == 200


def test_bytes_that_are_held_are_bounded(service: Service) -> None:
    body = bytes(900_000)
    answers = ask(service, *(score_request(body, RAW, x_shape="3,300,1000") for _ in range(6)))
    assert sorted(answer.status for answer in answers) == [200, 200, 503, 503, 503, 503]
    assert service._held == 0


def test_a_client_that_goes_away_leaves_nothing(small_model: RewardModel) -> None:
    meter = Meter()
    service = Service(Scorer(small_model), SETTINGS, meter=meter)

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)

    async def leaves() -> None:
        given = score_request(b"xx")._replace(body=endless())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(service.answer(given), 0.05)

    asyncio.run(leaves())
    assert service._held == 0
    assert meter.statuses == [499]
    service.close()


class Broken:
    """A reward that fails with what no client should see."""

    fingerprint = "broken-1"
    error: Exception = RuntimeError("/home/someone/secret.py line 3")

    def __call__(self, images: Tensor) -> RewardOutput:
        raise self.error


def test_errors_of_our_own_say_nothing_of_the_inside(photo_array: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    meter, reward = Meter(), Broken()
    service = Service(Scorer(reward), SETTINGS, meter=meter)
    for number in range(FAILURES):
        assert service.is_well
        (answer,) = ask(service, score_request(png_of(photo_array)))
        assert answer.status == 500, number
        assert content(answer) == {"error": "expected to score, got an error of the service itself; its log says which"}
    assert "secret.py line 3" in caplog.text
    (health,) = ask(service, Request("GET", "/health", {}, {}, in_chunks(b"")))
    assert (health.status, service.is_well) == (503, False)
    assert meter.statuses == [500] * FAILURES + [503]
    reward.error = torch.OutOfMemoryError("CUDA out of memory")
    (answer,) = ask(service, score_request(png_of(photo_array)))
    assert (answer.status, content(answer)["error"]) == (
        413,
        "image 1: expected one that fits in memory, got none free",
    )
    service.close()


def test_a_score_that_is_not_finite_is_an_error(photo_array: np.ndarray) -> None:
    class NotANumber:
        fingerprint = "nan-1"

        def __call__(self, images: Tensor) -> RewardOutput:
            return RewardOutput(torch.full((len(images),), float("nan")), None)

    service = Service(Scorer(NotANumber()), SETTINGS)
    (answer,) = ask(service, score_request(png_of(photo_array)))
    assert answer.status == 500
    assert b"NaN" not in answer.body
    service.close()


def test_a_reward_that_answers_wrongly_is_no_fault_of_the_image(photo_array: np.ndarray) -> None:
    class TooMany:
        fingerprint = "two-1"

        def __call__(self, images: Tensor) -> RewardOutput:
            return RewardOutput(torch.zeros(len(images) + 1), None)

    service = Service(Scorer(TooMany()), SETTINGS)
    (answer,) = ask(service, score_request(png_of(photo_array)))
    assert answer.status == 500
    service.close()


def test_a_reward_that_takes_more_is_refused() -> None:
    class Prompted(Broken):
        takes = ("prompts",)

    with pytest.raises(ValueError, match=r"^reward: expected one that takes images alone, got one that takes prompts$"):
        Service(Scorer(Prompted()), SETTINGS)


def test_the_meter_sees_what_happens(small_model: RewardModel, photo_array: np.ndarray) -> None:
    meter = Meter()
    service = Service(Scorer(small_model), SETTINGS, meter=meter)
    ask(service, score_request(form_of(*[png_of(photo_array)] * 3), FORM))
    ask(service, score_request(b"?"))
    assert (meter.statuses, meter.scored) == ([200, 400], 3)
    service.close()


def test_a_digest_is_no_token() -> None:
    assert digest("secret") == digest("secret") != digest("secre")
    assert b"secret" not in digest("secret")
    assert service_module.log.name == "finpercep.serve"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"queue_images": 8}, r"^queue_images: expected at least request_images, 64, got 8$"),
        ({"queue_mb": 8}, r"^queue_mb: expected at least request_mb, 64, got 8$"),
        ({"request_megapixels": 90}, r"^request_megapixels: expected at most 89, got 90$"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServeSettings(**given)


def test_an_image_that_the_reward_refuses_is_no_failure_of_the_service(photo_array: np.ndarray) -> None:
    reward = Broken()
    reward.error = ValueError("images: expected sides of at least 512, got 64x96")
    service = Service(Scorer(reward), SETTINGS)
    for _ in range(FAILURES + 1):
        (answer,) = ask(service, score_request(png_of(photo_array)))
        assert answer.status == 400
        assert content(answer)["error"] == "image 1: images: expected sides of at least 512, got 64x96"
    assert service.is_well
    service.close()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("/srv/models/secret/weights.pt: expected a checkpoint"),
        ValueError("expected a checkpoint,\ngot C:\\models\\secret.pt"),
        ImageError("images[0]: expected the reference models/secret.png, got none"),
    ],
)
def test_a_refusal_that_names_a_path_stays_in_the_log(
    photo_array: np.ndarray, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    reward = Broken()
    reward.error = error
    service = Service(Scorer(reward), SETTINGS)
    (answer,) = ask(service, score_request(png_of(photo_array)))
    assert answer.status == 400
    assert content(answer)["error"] == (
        "image 1: expected one that the reward takes, got another; the log of the service says why"
    )
    assert "secret" in caplog.text
    service.close()


def test_uploads_that_break_off_are_no_failures_of_the_service(service: Service) -> None:
    class Gone(Exception):
        """As starlette's ClientDisconnect."""

    async def part() -> AsyncIterator[bytes]:
        yield b"some"
        raise Gone

    given = {"content-type": "image/png", "content-length": "100"}
    answers = ask(service, *(Request("POST", "/score", {}, given, part()) for _ in range(2 * FAILURES)))
    assert {answer.status for answer in answers} == {400}
    assert content(answers[0])["error"] == "body: expected 100 bytes as announced, got a lost connection"
    assert ask(service, Request("GET", "/health", {}, {}, in_chunks(b"")))[0].status == 200


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:80"), ("::1", "http://[::1]:80"), ("here", "http://here:80")]
)
def test_the_address_of_a_service_is_a_url(host: str, url: str) -> None:
    assert ServeSettings(host=host, port=80).url == url
