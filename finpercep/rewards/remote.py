"""A reward that another process computes: the client of `finpercep serve`."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finpercep.models import RewardOutput
from finpercep.models.scoring import as_images
from finpercep.rewards.service_client import TOKEN, Client, ServiceError

__all__ = ["MAPS", "PNG", "RAW", "SHAPE", "TOKEN", "RemoteReward", "ServiceError"]

PNG, RAW = "image/png", "application/octet-stream"
LEAST_SIDE = 32
"""What a shorter side counts as against the limit of pixels: encoders pad to their stride, so it costs as much."""
SHAPE = "X-Shape"
MAPS = ("png", "fp16")
SCORE = "-score"  # a stage reward of scores alone is another one than with the map


def counted_pixels(height: int, width: int) -> int:
    """What an image counts as against the limit of pixels of a request."""
    return max(height, LEAST_SIDE) * max(width, LEAST_SIDE)


_rewards: weakref.WeakSet[RemoteReward] = weakref.WeakSet()


def _forget_threads() -> None:
    """In a forked process, as a worker of a `DataLoader` is: threads of the other one are not there to ask."""
    for reward in list(_rewards):
        reward._without_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


class RemoteReward:
    """A reward of the protocol whose answers come from `finpercep serve`.

    Images go as they would into an 8-bit file, uncompressed or as PNG; nothing is lost and nothing is pickled. Requests
    that meet a busy service, a lost connection or a process that was killed are sent again until `patience` is over.
    Answers carry no gradients.

    Args:
        url: "http://host:port", or "https://…". Credentials do not belong into it.
        token: what the service was started with; None is that of the environment variable FINPERCEP_TOKEN.
        maps: "fp16" or "png" (8 bits) asks for maps as well, "auto" for "fp16" where the reward has a map; None for
            scores alone, whose fingerprint then ends with "-score".
        transport: "raw" or, for slow networks, "png".
        connections: requests at once.
        images_per_request: at most.
        timeout: seconds that one attempt may take.
        patience: seconds until a request is given up.

    Raises:
        ValueError: an argument outside of these.
        ServiceError: there is no such service.
    """

    lower_better = False

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        maps: str | None = None,
        transport: str = "raw",
        connections: int = 16,
        images_per_request: int = 4,
        timeout: float = 60.0,
        patience: float = 120.0,
    ) -> None:
        self._client = Client(url, token=token, timeout=timeout, patience=patience)
        if maps not in (None, "auto", *MAPS):
            raise ValueError(f"maps: expected None, auto, {' or '.join(MAPS)}, got {maps!r}")
        if transport not in ("raw", "png"):
            raise ValueError(f"transport: expected raw or png, got {transport!r}")
        for name, value in (("connections", connections), ("images_per_request", images_per_request)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.url, self.transport = self._client.url, transport
        self._most, self._connections = images_per_request, connections
        self._without_threads()
        _rewards.add(self)
        about = self._client.content(
            self._client.insist("GET", "/info", {}, b"", threading.Event()), "has_map", "limits"
        )
        if maps == "auto":
            maps = "fp16" if about["has_map"] else None
        self.maps = maps
        self.fingerprint: str = about["fingerprint"] + (SCORE if about["has_map"] and maps is None else "")
        self.has_map = bool(about["has_map"]) and maps is not None
        if maps is not None and not about["has_map"]:
            raise ValueError(f"maps: expected None of {self.url}, whose reward has no map, got {maps!r}")
        self._most = min(self._most, int(about["limits"]["images"]))
        self._most_bytes, self._most_pixels = int(about["limits"]["bytes"]), int(about["limits"]["pixels"])

    def _without_threads(self) -> None:
        self._pool = ThreadPoolExecutor(self._connections, "finpercep-remote")
        self._waiting = ThreadPoolExecutor(self._connections, "finpercep-remote-score")
        self._client.forget()

    def __call__(self, images: Tensor, **context: Any) -> RewardOutput:
        """Scores, and maps if asked for, of a batch (B,3,H,W), float in [0, 1] or uint8, on its device."""
        if not len(images):  # as every reward does, and without a request
            nothing = images.new_empty(0, dtype=torch.float32)
            return RewardOutput(nothing, nothing.view(0, 1, *images.shape[-2:]) if self.has_map else None)
        found = self.score(images)
        degradation = found.map.to(images.device) if isinstance(found.map, Tensor) else None
        return RewardOutput(found.score.to(images.device), degradation)

    def score(self, images: Any) -> RewardOutput:
        """Score a batch, one image, or a list of paths, PIL images, arrays and tensors; see `RewardModel.score`.

        Raises:
            ImageError: an image that cannot be read or used.
            ServiceError: see there.
        """
        items, stacked = as_images(images)
        over = threading.Event()
        answers = [self._pool.submit(self._request, group, over) for group in self._groups(items)]
        try:
            found = [one for answer in answers for one in answer.result()]
        finally:
            for answer in answers:  # after an error the others would be asked for in vain, each with its own patience
                answer.cancel()
            over.set()
        scores = torch.tensor([score for score, _ in found], dtype=torch.float32)
        if not self.has_map:
            return RewardOutput(scores, None)
        maps = [degradation for _, degradation in found if degradation is not None]
        return RewardOutput(scores, torch.stack(maps) if stacked else maps)

    def score_async(self, images: Any) -> Future[RewardOutput]:
        """`score` in the background; as many calls as there are connections go on at once."""
        return self._waiting.submit(self.score, images)

    async def ascore(self, images: Any) -> RewardOutput:
        """`score` for `await`."""
        return await asyncio.wrap_future(self.score_async(images))

    def close(self) -> None:
        """Wait for what is asked and end the threads."""
        self._waiting.shutdown()
        self._pool.shutdown()

    def _groups(self, items: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Neighbors of one size, as many as one request may hold."""
        group: list[Tensor] = []
        for item in items:
            pixels = item[0].numel()
            room = min(
                self._most, self._most_pixels // counted_pixels(*item.shape[-2:]), self._most_bytes // (3 * pixels)
            )
            if group and (len(group) >= room or group[0].shape != item.shape):
                yield group
                group = []
            group.append(item)
        if group:
            yield group

    def _request(self, images: Sequence[Tensor], over: threading.Event) -> list[tuple[float, Tensor | None]]:
        batch = torch.stack([_eight_bit(image) for image in images]).cpu()
        path = "/score" if self.maps is None else f"/score?maps={self.maps}"
        answer = self._client.content(self._client.insist("POST", path, *self._body(batch), over), "results")
        results = answer["results"]
        served = self.fingerprint.removesuffix(SCORE)
        if answer["fingerprint"] != served:
            raise ServiceError(f"{self.url}: expected the reward {served} as before, got {answer['fingerprint']}")
        if len(results) != len(images):
            raise ServiceError(f"{self.url}: expected {len(images)} results, got {len(results)}")
        shape = (1, *batch.shape[-2:])
        return [(float(one["score"]), _map(one["map"], self.maps, shape) if self.maps else None) for one in results]

    def _body(self, batch: Tensor) -> tuple[dict[str, str], bytes]:
        if self.transport == "raw":
            shape = ",".join(str(n) for n in batch.shape)
            return {"Content-Type": RAW, SHAPE: shape}, batch.numpy().tobytes()
        boundary = f"finpercep{random.getrandbits(128):032x}"
        lines = [f'--{boundary}\r\nContent-Disposition: form-data; name="image"\r\n\r\n'.encode(), b"\r\n"]
        body = b"".join(lines[0] + _png(image) + lines[1] for image in batch) + f"--{boundary}--\r\n".encode()
        return {"Content-Type": f"multipart/form-data; boundary={boundary}"}, body


def _eight_bit(image: Tensor) -> Tensor:
    image = image.detach()
    return image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _png(image: Tensor) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _map(text: str, kind: str | None, shape: tuple[int, ...]) -> Tensor:
    data = base64.b64decode(text)
    if kind == "png":
        from PIL import Image

        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return torch.from_numpy(np.array(image)).view(shape).float() / 255
    return torch.frombuffer(bytearray(data), dtype=torch.float16).view(shape).float()
