"""The whole service on Ray Serve, over the network, and what it does when a replica is killed."""

from __future__ import annotations

import http.client
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


@pytest.fixture(scope="module")
def url(model_folder: Path) -> Iterator[str]:
    from finpercep.engine.serve.on_ray import serving

    settings = ServeSettings(port=PORT, metrics_port=METRICS, replicas=2, deterministic=True)
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


def test_a_killed_replica_loses_nothing(reward: RemoteReward, small_model: RewardModel) -> None:
    photos = [eight_bit(i) for i in range(8)]
    expected = Scorer(small_model, deterministic=True).score(photos).score.tolist()
    killed, end, wrong, answers = threading.Event(), threading.Event(), [], []

    def client(number: int) -> None:
        while not end.is_set():
            found = float(reward.score([photos[number]]).score)
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
    assert wrong == []


def test_metrics(reward: RemoteReward) -> None:
    reward(eight_bit(0)[None])

    def found() -> bool:
        text = urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=10).read().decode()
        return "ray_finpercep_images" in text and "ray_finpercep_requests" in text

    wait_for(found)


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
