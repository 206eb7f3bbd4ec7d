"""The whole service on Ray Serve, over the network: slow, broken and departing clients, and a dead replica."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from torch import Tensor

from finpercep import RewardModel, Scorer
from finpercep.engine.serve.settings import ServeSettings
from finpercep.rewards import RemoteReward
from tests.conftest import synthetic_photo
from tests.engine.serve.test_requests import png_of

pytestmark = pytest.mark.slow
pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra serve)")

PORT, METRICS = 18437, 18438
SECONDS = 8
"""In which a request has to arrive."""
HEAD = b"Host: here\r\nAuthorization: Bearer secret\r\nContent-Type: image/png\r\nConnection: close\r\n"


@pytest.fixture(scope="module")
def url(model_folder: Path) -> Iterator[str]:
    from finpercep.engine.serve.on_ray import serving

    settings = ServeSettings(
        port=PORT, metrics_port=METRICS, replicas=2, deterministic=True, request_seconds=SECONDS, queue_mb=64
    )
    with serving(str(model_folder), settings, token="secret") as place:
        yield place


@pytest.fixture(scope="module")
def reward(url: str) -> Iterator[RemoteReward]:
    made = RemoteReward(url, token="secret", maps="fp16", images_per_request=1, connections=8)
    yield made
    made.close()


def eight_bit(seed: int) -> Tensor:
    return (synthetic_photo(64, 80, seed) * 255).round().byte()


def test_scores_are_those_of_one_process_bit_for_bit(reward: RemoteReward, small_model: RewardModel) -> None:
    batch = torch.stack([eight_bit(i) for i in range(6)])
    found, expected = reward(batch), Scorer(small_model, deterministic=True).score(batch)
    assert torch.equal(found.score, expected.score)
    assert torch.equal(found.map, expected.map.half().float())
    assert reward.fingerprint == small_model.fingerprint


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/health", {}, b"", 200),
        ("/score", {}, png_of(), 401),
        ("/score", {"Authorization": "Bearer secret", "Content-Type": "image/png"}, b"rubbish", 400),
        ("/score", {"Authorization": "Bearer secret", "Content-Type": "image/png"}, bytes(65_000_000), 413),
        ("/nothing", {"Authorization": "Bearer secret"}, b"", 404),
    ],
)
def test_wrong_requests_over_the_network(
    url: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        connection.request("POST" if body else "GET", path, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    assert answer.status == status
    assert "Traceback" not in text
    assert "finpercep/" not in text


def test_half_a_body_is_waited_for_and_then_refused(url: str) -> None:
    began = time.monotonic()
    answer = told(b"POST /score HTTP/1.1\r\n" + HEAD + b"Content-Length: 1000\r\n\r\n" + bytes(500))
    assert SECONDS - 0.5 < time.monotonic() - began < SECONDS + 20
    assert answer.startswith("HTTP/1.1 408 ")
    assert answer.endswith(f'{{"error": "body: expected it within {SECONDS} s, got a part"}}')


def test_clients_that_go_away_leave_room_for_others(url: str) -> None:
    """Some announce all of the 64 MB that a replica holds; others leave before their answer."""
    whole = b"POST /score HTTP/1.1\r\n" + HEAD + f"Content-Length: {len(png_of())}\r\n\r\n".encode() + png_of()
    for _ in range(4):
        for part in (b"POST /score HTTP/1.1\r\n" + HEAD + b"Content-Length: 64000000\r\n\r\n" + bytes(500), whole):
            with socket.create_connection(("127.0.0.1", PORT), timeout=60) as client:
                client.sendall(part)
                time.sleep(0.05)  # it arrives, and is being read
    began = time.monotonic()
    wait_for(lambda: all(told(whole).startswith("HTTP/1.1 200 ") for _ in range(8)))
    assert time.monotonic() - began < SECONDS - 2  # not because the time of those requests was over


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /score HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 411),
        (b"POST /score HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\nzz\r\nabcde\r\n0\r\n\r\n", 400),
        (b"POST /score HTTP/1.1\r\n%bContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /score HTTP/1.1\r\n%bContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
        (b"POST /score HTTP/1.1\r\n%bContent-Length: -5\r\n\r\n", 400),
        (b"GET /health HTTP/9.9\r\n%b\r\n", 400),
        (b"GET\r\n%b\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\xfc\x03\x03%b", 400),  # as TLS begins
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n%b\r\n", 400),
        (b"GET /\xff\xfe HTTP/1.1\r\n%b\r\n", 400),
        (b"GET * HTTP/1.1\r\n%b\r\n", 404),
        (b"GET //health HTTP/1.1\r\n%b\r\n", 404),
        (b"GET /health%%00 HTTP/1.1\r\n%b\r\n", 404),
        (b"GET /score/../../etc/passwd HTTP/1.1\r\n%b\r\n", 404),
        (b"GET /%%2e%%2e/etc/passwd HTTP/1.1\r\n%b\r\n", 404),
        (b"GET http://elsewhere/score HTTP/1.1\r\n%b\r\n", 405),
        (b"GET /health HTTP/1.1\r\n%b\r\n", 200),  # after all of them
    ],
)
def test_rubbish_and_odd_paths_are_answered(url: str, request_: bytes, status: int) -> None:
    answer = told(request_ % HEAD)
    assert answer.startswith(f"HTTP/1.1 {status} "), answer
    assert "Traceback" not in answer
    assert "finpercep/" not in answer


def test_a_killed_replica_loses_nothing(reward: RemoteReward, small_model: RewardModel) -> None:
    photos = [eight_bit(i) for i in range(8)]
    expected = Scorer(small_model, deterministic=True).score(photos).score.tolist()
    killed, end = threading.Event(), threading.Event()
    wrong: list[int] = []
    lost: list[Exception] = []
    answers: list[bool] = []

    def client(number: int) -> None:
        while not end.is_set():
            try:
                found = float(reward.score([photos[number]]).score)
            except Exception as error:
                lost.append(error)
                continue
            answers.append(killed.is_set())
            if found != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(photos))]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(answers) > 16)
    kill_a_replica()
    killed.set()
    wait_for(lambda: sum(answers) > 64)
    end.set()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert (lost, wrong) == ([], [])


def test_metrics(reward: RemoteReward) -> None:
    reward(eight_bit(0)[None])

    def found() -> bool:
        text = urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=10).read().decode()
        return "ray_finpercep_images" in text and "ray_finpercep_requests" in text

    wait_for(found)


def told(request: bytes) -> str:
    """What the service answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", PORT), timeout=60) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(1 << 16), b"")).decode()


def kill_a_replica() -> None:
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    name = next(actor["name"] for actor in actors if actor["name"].startswith("SERVE_REPLICA::finpercep#reward"))
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=False)


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)
