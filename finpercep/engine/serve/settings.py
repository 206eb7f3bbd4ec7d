"""What a service is started with: every default stands here, and `finpercep serve` makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["LOOPBACK", "ServeSettings"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
PILLOWS_MEGAPIXELS = 89  # beyond, Pillow takes an image for a decompression bomb


def _option(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class ServeSettings:
    """Where a service listens, what computes, and how much it takes at once.

    Raises:
        ValueError: numbers that fit no request, or a queue that is smaller than one.
    """

    host: str = _option("127.0.0.1", "Address to listen at. Another than this machine's own needs a token.")
    port: int = _option(8000, "Port to listen at.", min=1)
    replicas: int = _option(1, "Processes that score, each with its own copy of the model.", min=1)
    dtype: str | None = _option(None, "fp32, bf16 or fp16. Default: the model's own.")
    deterministic: bool = _option(False, "The same bits for an image whatever it is scored with.")
    request_mb: int = _option(64, "Megabytes of a request, at most.", min=1)
    request_images: int = _option(64, "Images of a request, at most.", min=1)
    request_megapixels: int = _option(64, "Megapixels of the images of a request together, at most.", min=1)
    request_seconds: int = _option(30, "Seconds in which the whole of a request has to arrive.", min=1)
    queue_images: int = _option(256, "Images that wait in a replica, at most; then it is busy (503).", min=1)
    queue_mb: int = _option(512, "Megabytes of requests that a replica holds, at most; then it is busy.", min=1)
    metrics_port: int = _option(8001, "Port of Ray's Prometheus metrics, at all addresses of this machine.", min=1)

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            if not 1 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name}: expected 1 to 65535, got {getattr(self, name)}")
        if self.request_megapixels > PILLOWS_MEGAPIXELS:
            raise ValueError(
                f"request_megapixels: expected at most {PILLOWS_MEGAPIXELS}, got {self.request_megapixels}"
            )
        for waiting, one in (("queue_images", "request_images"), ("queue_mb", "request_mb")):
            if getattr(self, waiting) < getattr(self, one):
                raise ValueError(
                    f"{waiting}: expected at least {one}, {getattr(self, one)}, got {getattr(self, waiting)}"
                )

    @property
    def request_bytes(self) -> int:
        return self.request_mb * 10**6

    @property
    def request_pixels(self) -> int:
        return self.request_megapixels * 10**6

    @property
    def queue_bytes(self) -> int:
        return self.queue_mb * 10**6

    @property
    def url(self) -> str:
        """Where it answers; an address of IPv6 is in brackets there."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in LOOPBACK
