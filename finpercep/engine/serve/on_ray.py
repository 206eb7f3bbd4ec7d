"""The service on Ray Serve: replicas, their HTTP proxy, health and metrics."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from finpercep.engine.dtypes import DTYPES, NAMED_DTYPES
from finpercep.engine.scorer import Scorer
from finpercep.engine.serve.service import Request, Service, digest
from finpercep.engine.serve.settings import ServeSettings
from finpercep.runs.cluster import connect, worker_device

__all__ = ["application", "serving", "wait_for_the_end"]

ONGOING = 1024
"""Requests that Ray hands to a replica at once: it is the service that says when it is busy."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}  # a line for each request costs more than it tells
SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]


class Replica:
    """A copy of the reward in a process of its own."""

    def __init__(self, model: str, settings: ServeSettings, device: str, cores: int, token: bytes | None) -> None:
        torch.set_num_threads(cores)  # Ray sets it too, unless the environment has OMP_NUM_THREADS
        scorer = Scorer(model, device=device, dtype=settings.dtype, deterministic=settings.deterministic)
        self.service = Service(scorer, settings, token=token, meter=RayMeter())

    async def __call__(self, request: Any) -> Any:
        from starlette.responses import Response

        headers = {name.lower(): value for name, value in request.headers.items()}
        given = Request(request.method, request.url.path, request.query_params, headers, request.stream())
        answer = await self.service.answer(given)
        return Response(answer.body, answer.status, answer.headers)

    def check_health(self) -> None:
        """Ray starts a replica again that raises here."""
        if not self.service.is_well:
            raise RuntimeError("the last requests all failed")


class RayMeter:
    """Figures as Ray's metrics, which it exports for Prometheus with the prefix "ray_"."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._requests = Counter("finpercep_requests", "Requests by status", tag_keys=("status",))
        self._seconds = Histogram("finpercep_request_seconds", "Seconds from head to answer", boundaries=SECONDS)
        self._images = Counter("finpercep_images", "Images scored")
        self._waiting = Gauge("finpercep_waiting_images", "Images that wait in a replica")

    def request(self, status: int, seconds: float) -> None:
        self._requests.inc(1, {"status": str(status)})
        self._seconds.observe(max(seconds, 1e-9))

    def images(self, count: int, waiting: int) -> None:
        self._images.inc(count)
        self._waiting.set(waiting)


def application(model: str, settings: ServeSettings, *, device: str, cores: int, token: str | None = None) -> Any:
    """The service as an application of Ray Serve, for `serve.run`.

    Args:
        model: what `load_reward` takes, on the machines of the replicas.
        device: "cpu", or "cuda", which gives each replica a GPU.
        cores: of each replica.
        token: what requests must carry; the replicas are told its digest alone.
    """
    from ray import serve

    deployment = serve.deployment(
        name="reward",
        num_replicas=settings.replicas,
        max_ongoing_requests=ONGOING,
        max_queued_requests=ONGOING,
        ray_actor_options={"num_cpus": cores, "num_gpus": 1 if device.startswith("cuda") else 0},
        logging_config=LOGGING,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=20,
    )(Replica)
    return deployment.bind(model, settings, device, cores, None if token is None else digest(token))


@contextmanager
def serving(
    model: str,
    settings: ServeSettings,
    *,
    device: str = "cpu",
    cores: int = 1,
    token: str | None = None,
    address: str | None = None,
) -> Iterator[str]:
    """Serve while inside; gives the URL.

    Args:
        device: see `score_files_on_ray`; "cuda" gives each replica a GPU.
        address: of a Ray cluster that runs; None starts Ray here, on this machine's own address alone.

    Raises:
        ImportError: Ray Serve is not installed.
        ValueError: settings that do not fit, or an address of others without a token.
        RuntimeError: the port is in use; Ray, or the reward, does not start.
    """
    if settings.dtype is not None and settings.dtype not in NAMED_DTYPES:
        raise ValueError(f"dtype: expected {', '.join(DTYPES)}, got {settings.dtype!r}")
    worker_device(device, {})
    if not settings.is_local and not token:
        raise ValueError(f"host: expected 127.0.0.1, or a token for {settings.host}, which others reach")
    if not address and not os.environ.get("RAY_ADDRESS"):  # of a cluster, another machine may listen
        check_port(settings)
    joined = getattr(sys.modules.get("ray"), "is_initialized", bool)()
    ray = connect(
        "serve", "serve", address=address, _node_ip_address="127.0.0.1", _metrics_export_port=settings.metrics_port
    )
    device = worker_device(device, ray.cluster_resources())
    if not joined and not address and not os.environ.get("RAY_ADDRESS"):  # a cluster of others may grow
        try:
            check_room(ray.cluster_resources(), settings.replicas, cores=cores, device=device)
        except ValueError:
            ray.shutdown()
            raise
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError(f"serve needs Ray Serve ({error}); pip install 'finpercep[serve]'") from error
    try:
        place = {"host": settings.host, "port": settings.port, "location": "HeadOnly"}
        serve.start(http_options=place, logging_config=LOGGING)
        app = application(model, settings, device=device, cores=cores, token=token)
        serve.run(app, name="finpercep", route_prefix="/", blocking=False)
        yield settings.url
    finally:
        try:
            serve.delete("finpercep")  # lets what is asked be answered
        finally:
            if not joined:
                ray.shutdown()  # and with it, of a cluster of our own, everything else


def check_port(settings: ServeSettings) -> None:
    """Refuse an address that cannot be listened at, before Ray starts: it takes half a minute, and pages, to say so.

    Raises:
        RuntimeError: names it.
    """
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a service that has just ended is none
        try:
            listening.bind((settings.host, settings.port))
        except OSError as error:
            raise RuntimeError(
                f"port: expected {settings.url} to be free to listen at, got: {error.strerror}"
            ) from error


def check_room(resources: Mapping[str, float], replicas: int, *, cores: int, device: str) -> None:
    """Refuse replicas for which there is no room: Ray would wait for it without end.

    Raises:
        ValueError: says how many fit.
    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if replicas * cores > cpus:
        raise ValueError(
            f"replicas: expected at most {cpus // cores} of {cores} cores each on a machine of {cpus}, got {replicas}"
        )
    if device.startswith("cuda") and replicas > gpus:
        raise ValueError(f"replicas: expected at most {gpus}, one for each GPU, got {replicas}")


def wait_for_the_end() -> None:
    """Until Ctrl-C or SIGTERM."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    signal.signal(signal.SIGINT, lambda *_: end.set())
    while not end.wait(1.0):
        pass
