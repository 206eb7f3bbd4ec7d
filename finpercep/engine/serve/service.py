"""What the service answers: `Service.answer` takes a request and gives an answer, whichever server carries them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import io
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finpercep.engine.batches import is_out_of_memory
from finpercep.engine.executor import Outcome
from finpercep.engine.files import figures_of
from finpercep.engine.scorer import Scorer
from finpercep.engine.serve.batcher import Batcher, Busy, Failed
from finpercep.engine.serve.requests import Refused, images_of
from finpercep.engine.serve.settings import ServeSettings
from finpercep.io.images import ImageError
from finpercep.io.reasons import one_line
from finpercep.rewards.protocol import WrongAnswerError
from finpercep.rewards.remote import MAPS, SHAPE

__all__ = ["Answer", "Meter", "Request", "Service", "digest"]

FAILURES = 8
"""Errors of our own in a row after which a service is not well: a device that broke does not come back by itself."""
PROBE_SIDE = 256
WAITS = (1, 30)  # seconds that a client is asked to stay away, at least and at most

log = logging.getLogger("finpercep.serve")


class Request(NamedTuple):
    """A request as every HTTP server can give it; names of headers are small letters."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Meter(Protocol):
    """Where the service's figures go."""

    def request(self, status: int, seconds: float) -> None: ...
    def images(self, count: int, waiting: int) -> None: ...


def digest(token: str) -> bytes:
    """What a service keeps of a token: enough to recognize it."""
    return hashlib.sha256(token.encode()).digest()


class Service:
    """A scorer behind requests.

    Args:
        scorer: of a reward that takes images alone.
        settings: the limits.
        token: the `digest` of the token that requests must carry; None asks for none.
        meter: is told of every request.

    Raises:
        ValueError: the reward takes more than images.
    """

    def __init__(
        self, scorer: Scorer, settings: ServeSettings, *, token: bytes | None = None, meter: Meter | None = None
    ) -> None:
        if scorer.takes:
            raise ValueError(
                f"reward: expected one that takes images alone, got one that takes {', '.join(scorer.takes)}"
            )
        self.scorer, self.settings, self._token, self._meter = scorer, settings, token, meter
        self._fingerprint, self._has_map = scorer.fingerprint, _has_map(scorer)
        self._batcher = Batcher(scorer, most=settings.queue_images)
        self._held = 0  # bytes of requests
        self._failures = 0

    @property
    def is_well(self) -> bool:
        """Whether it can answer, as far as it knows."""
        return self._failures < FAILURES

    async def answer(self, request: Request) -> Answer:
        """The answer to any request; only a cancellation is raised."""
        began = time.monotonic()
        try:
            found = await self._route(request)
        except Refused as refused:
            found = _error(refused.status, refused.reason, **refused.headers)
        except Busy as busy:
            found = self._busy(busy.seconds)
        except asyncio.CancelledError:
            self._count(499, began)
            raise
        except Exception:
            self._failures += 1
            log.exception("a request failed")
            found = _error(500, "expected to score, got an error of the service itself; its log says which")
        self._count(found.status, began)
        return found

    def close(self) -> None:
        self._batcher.close()
        self.scorer.close()

    def _count(self, status: int, began: float) -> None:
        if self._meter is not None:
            self._meter.request(status, time.monotonic() - began)

    def _busy(self, seconds: float) -> Answer:
        wait = min(max(math.ceil(seconds), WAITS[0]), WAITS[1])
        return _error(503, f"busy: expected to answer later, got a full queue; try again in {wait} s", **_after(wait))

    async def _route(self, request: Request) -> Answer:
        routes = {"/health": ("GET", self._health), "/info": ("GET", self._info), "/score": ("POST", self._score)}
        if request.path not in routes:
            raise Refused(404, f"path: expected {', '.join(routes)}, got another")
        method, handle = routes[request.path]
        if request.method != method:
            raise Refused(405, f"method: expected {method} for {request.path}, got another", Allow=method)
        if request.path != "/health":
            self._admit(request.headers.get("authorization", ""))
        return await handle(request)

    def _admit(self, authorization: str) -> None:
        if self._token is None:
            return
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(digest(token.strip()), self._token):
            raise Refused(401, "Authorization: expected Bearer and the token", **{"WWW-Authenticate": "Bearer"})

    async def _health(self, request: Request) -> Answer:
        return _json(200, {"status": "ok"}) if self.is_well else _error(503, "not well: the last requests all failed")

    async def _info(self, request: Request) -> Answer:
        settings = self.settings
        limits = {
            "bytes": settings.request_bytes,
            "images": settings.request_images,
            "pixels": settings.request_pixels,
        }
        return _json(200, {"fingerprint": self._fingerprint, "has_map": self._has_map, "limits": limits})

    async def _score(self, request: Request) -> Answer:
        kind = request.query.get("maps")
        if kind is not None and kind not in MAPS:
            raise Refused(400, f"maps: expected {' or '.join(MAPS)}, got {kind[:80]!a}")
        length = self._length(request.headers)
        self._held += length
        try:
            body = await self._read(request.body, length)
            headers = request.headers
            images = images_of(headers.get("content-type", ""), headers.get(SHAPE.lower()), body, self.settings)
            del body
            results = await self._results(images, kind)
        finally:
            self._held -= length
        self._failures = 0
        return _json(200, {"fingerprint": self._fingerprint, "results": results})

    def _length(self, headers: Mapping[str, str]) -> int:
        text = headers.get("content-length", "")
        if not text:
            raise Refused(411, "Content-Length: expected the number of bytes, got none")
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise Refused(400, f"Content-Length: expected a number, got {text[:80]!a}")
        length = int(text)
        if length > self.settings.request_bytes:
            raise Refused(413, f"body: expected at most {self.settings.request_bytes} bytes, got {length}")
        if self._held + length > self.settings.queue_bytes:
            raise Busy(WAITS[0])
        return length

    async def _read(self, chunks: AsyncIterator[bytes], length: int) -> bytes:
        async def whole() -> bytes:
            body = bytearray()
            async for chunk in chunks:
                body += chunk
                if len(body) > length:
                    break
            return bytes(body)

        try:
            body = await asyncio.wait_for(whole(), self.settings.request_seconds)
        except asyncio.TimeoutError:
            raise Refused(408, f"body: expected it within {self.settings.request_seconds} s, got a part") from None
        except Exception as error:  # whoever sent it has gone, which is no failure of the service
            raise Refused(400, f"body: expected {length} bytes as announced, got a lost connection") from error
        if len(body) != length:
            raise Refused(400, f"body: expected {length} bytes as announced, got {len(body)}")
        return body

    async def _results(self, images: list[Any], kind: str | None) -> list[dict[str, Any]]:
        def finish(image: Tensor, outcome: Outcome) -> dict[str, Any]:
            return _result(outcome, kind)

        try:
            results = await self._batcher.score(images, finish)
        except Failed as failed:
            if isinstance(failed.error, ImageError):
                reason = str(failed.error).partition(": ")[2]
                raise _refused(failed.number, reason) from failed
            if is_out_of_memory(failed.error):
                raise Refused(
                    413, f"image {failed.number}: expected one that fits in memory, got none free"
                ) from failed
            if isinstance(failed.error, ValueError) and not isinstance(failed.error, WrongAnswerError):
                # the reward refuses this image
                raise _refused(failed.number, one_line(failed.error)) from failed
            raise failed.error from None
        if self._meter is not None:
            self._meter.images(len(images), self._batcher.waiting)
        return results


def _has_map(scorer: Scorer) -> bool:
    """What the reward says; of one that does not, as a mixture, what it answers to a gray image."""
    said = getattr(scorer.executor.reward, "has_map", None)
    if said is not None:
        return bool(said)
    try:
        return scorer.score([torch.full((3, PROBE_SIDE, PROBE_SIDE), 0.5)]).map is not None
    except Exception:  # it may refuse this image alone
        log.warning("the reward did not score a gray image: it is taken to have no map", exc_info=True)
        return False


def _refused(number: int, reason: str) -> Refused:
    """The refusal of an image; a reason that may hold a path of this machine is for the log alone."""
    if "/" in reason or "\\" in reason:
        log.warning("image %d was refused: %s", number, reason)
        reason = "expected one that the reward takes, got another; the log of the service says why"
    return Refused(400, f"image {number}: {reason}")


def _result(outcome: Outcome, kind: str | None) -> dict[str, Any]:
    """Figures of an image, as exact as JSON and float32 are, and its map."""
    score, mean, worst = figures_of(outcome)
    found: dict[str, Any] = {"score": score, "map_mean": mean, "map_worst": worst}
    if outcome.map is None:
        return {"score": score, "map_mean": None, "map_worst": None, **({} if kind is None else {"map": None})}
    if kind is not None:
        found["map"] = base64.b64encode(_encoded(outcome.map[0], kind)).decode()
    return found


def _encoded(degradation: Tensor, kind: str) -> bytes:
    """A map (H,W): a gray PNG of round(255·M), or float16 by rows, little-endian."""
    if kind == "fp16":
        return degradation.to(torch.float16).numpy().astype("<f2", copy=False).tobytes()
    file = io.BytesIO()
    Image.fromarray((degradation * 255).round().numpy().astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _json(status: int, content: Mapping[str, Any], **headers: str) -> Answer:
    return Answer(status, {"Content-Type": "application/json", **headers}, json.dumps(content).encode())


def _error(status: int, reason: str, **headers: str) -> Answer:
    return _json(status, {"error": reason}, **headers)


def _after(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
