"""Ray: the cluster that runs already, or one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

__all__ = ["connect", "worker_device"]

# Ray gives up on its own processes after 30 s, which a machine that works cannot always keep, and by default lets its
# workers (niceness 15) wait for everything else that runs.
_DEFAULTS = {"RAY_agent_register_timeout_ms": "180000", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
ATTEMPTS = 3


def connect(what: str, extra: str, *, address: str | None = None, **options: Any) -> Any:
    """The module `ray`, connected to a cluster.

    Args:
        what: for whom, as it begins a message.
        extra: of this package, with Ray in it.
        address: of a cluster ("auto", "host:port"); None takes what the environment variable RAY_ADDRESS names, else
            starts one on this machine.
        options: of `ray.init`, for a cluster on this machine.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: there is no such cluster, or its processes do not come up in time.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"{what} needs Ray ({error}); pip install 'finpercep[{extra}]'") from error
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
    given = {"address": "local", "include_dashboard": False, **options} if address is None else {"address": address}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **given)
            return ray
        except Exception as error:  # Ray raises just that where its processes do not come up in time
            if attempt == ATTEMPTS or address is not None:
                raise RuntimeError(f"{what}: expected a cluster, got {type(error).__name__}: {error}") from error
            ray.shutdown()
    return ray


def worker_device(device: str, resources: Mapping[str, float]) -> str:
    """Where a worker computes, which sees one GPU at most, whatever the machine that asks has.

    Args:
        device: "cpu", "cuda", or "auto": GPUs, if there are any.
        resources: of the cluster.

    Raises:
        ValueError: another one, such as "cuda:1".
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda for workers of Ray, which have a GPU each, got {device}")
    return ("cuda" if resources.get("GPU", 0) >= 1 else "cpu") if device == "auto" else device
