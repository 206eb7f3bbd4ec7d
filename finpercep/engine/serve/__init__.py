"""A reward over HTTP: what is asked (`requests`), how it is batched, what is answered, and Ray Serve around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.engine.serve.service import Answer, Request, Service
    from finpercep.engine.serve.settings import ServeSettings

__all__ = ["Answer", "Request", "ServeSettings", "Service"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "ServeSettings": "finpercep.engine.serve.settings",
        **dict.fromkeys(("Answer", "Request", "Service"), "finpercep.engine.serve.service"),
    },
)
