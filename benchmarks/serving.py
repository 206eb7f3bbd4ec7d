"""`python -m benchmarks.serving [MODEL]`: the service under load, beside the same scorer in one process.

64 clients on loopback send one 512 × 512 photo each, uncompressed, again and again. Service and process take turns on
the same photos, and the ratio is the median over turns, so that a machine's slow seconds do not count. Clients, Ray and
replica share the cores of this machine; the processor time of each is counted. Then two replicas, of which one is
killed under the same load: what was lost, and what came back wrong. Writes `benchmarks/results/serving.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.report import RESULTS, device_name
from finpercep import RewardModel, Scorer
from finpercep.cli.common import DEFAULT_MODEL
from finpercep.engine.serve import ServeSettings
from finpercep.engine.serve.on_ray import serving
from finpercep.rewards import RemoteReward

CLIENTS, TURNS, EACH = 64, 5, 2
SIDE = 512
HERE = "clients"
PROCESSES = ("in one process", "replica", "proxy", "rest of Ray", HERE)
PORT = 18643


def photos(count: int) -> list[Tensor]:
    """Crops (3,H,W), uint8, of scikit-image's photos, all different."""
    from skimage import data

    sources = [torch.from_numpy(getattr(data, name)()).permute(2, 0, 1) for name in ("astronaut", "coffee")]
    sources = [photo.repeat(1, 2, 2) for photo in sources]
    return [sources[i % 2][:, i : i + SIDE, 2 * i : 2 * i + SIDE].contiguous() for i in range(count)]


def all_at_once(reward: RemoteReward, images: Sequence[Tensor]) -> list[float]:
    """Each image by one of the clients."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(lambda image: float(reward.score([image]).score), images))


def throughput(model: str, cores: int) -> dict[str, Any]:
    """Seconds for the same images, in turns: in this process, and through the service."""
    images = photos(CLIENTS)
    local = Scorer(RewardModel.from_pretrained(model).requires_grad_(False), lanes=cores)
    seconds: dict[str, list[float]] = {"process": [], "service": []}
    worked: Counter[str] = Counter()
    with serving(model, ServeSettings(port=PORT, metrics_port=PORT + 1), cores=cores) as url:
        reward = RemoteReward(url, connections=CLIENTS, images_per_request=1)
        expected = local.score(images).score.tolist()
        different = max(abs(a - b) for a, b in zip(expected, all_at_once(reward, images), strict=True))
        for _ in range(TURNS):
            before, began = processor_seconds(), time.perf_counter()
            local.score(images * EACH)
            seconds["process"].append(time.perf_counter() - began)
            between, began = processor_seconds(), time.perf_counter()
            all_at_once(reward, images * EACH)
            seconds["service"].append(time.perf_counter() - began)
            worked["in one process"] += between[HERE] - before[HERE]
            worked.update(processor_seconds() - between)
        reward.close()
    local.close()
    ratios = [a / b for a, b in zip(seconds["process"], seconds["service"], strict=True)]
    rates = {route: CLIENTS * EACH / statistics.median(times) for route, times in seconds.items()}
    return {
        "images_per_second": rates,
        "share": statistics.median(ratios),
        "share_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "largest_difference": different,
        "processor_ms_per_image": {name: 1000 * worked[name] / (TURNS * CLIENTS * EACH) for name in PROCESSES},
    }


def processor_seconds() -> Counter[str]:
    """What this process and Ray's have used so far, by `PROCESSES`."""
    found: Counter[str] = Counter()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline())
            times = process.cpu_times()
            kinds = (HERE, process.pid == os.getpid()), ("replica", "ServeReplica" in name), ("proxy", "Proxy" in name)
            found[next((kind for kind, fits in kinds if fits), "rest of Ray")] += times.user + times.system
    return found


def killed(model: str, seconds: float) -> dict[str, Any]:
    """One of two replicas dies in the middle: answers, errors and wrong scores of all clients."""
    images = photos(CLIENTS)
    expected = Scorer(model, deterministic=True).score(images).score.tolist()
    answers, lost, wrong = [], [], []
    end = threading.Event()
    settings = ServeSettings(port=PORT, metrics_port=PORT + 1, replicas=2, deterministic=True)
    with serving(model, settings, cores=1) as url:
        reward = RemoteReward(url, connections=CLIENTS, images_per_request=1)

        def client(number: int) -> None:
            while not end.is_set():
                try:
                    found = float(reward.score([images[number]]).score)
                except Exception as error:
                    lost.append(f"{type(error).__name__}: {error}")
                    continue
                answers.append(time.monotonic())
                if found != expected[number]:
                    wrong.append(number)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        kill_a_replica()
        moment = time.monotonic()
        time.sleep(2 * seconds)
        end.set()
        for thread in threads:
            thread.join()
        reward.close()
    after = sorted(answer - moment for answer in answers if answer > moment)
    gaps = [b - a for a, b in zip([0.0, *after], after, strict=False)]
    return {
        "answers_before": sum(answer <= moment for answer in answers),
        "answers_after": len(after),
        "lost": len(lost),
        "reasons": sorted(set(lost))[:3],
        "wrong": len(wrong),
        "longest_pause_seconds": max(gaps),
    }


def kill_a_replica() -> None:
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    name = next(actor["name"] for actor in actors if actor["name"].startswith("SERVE_REPLICA::finpercep#reward"))
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=False)


def markdown(found: dict[str, Any]) -> str:
    rates, killed = found["throughput"]["images_per_second"], found["killed"]
    low, high = found["throughput"]["share_quartiles"]
    worked = found["throughput"]["processor_ms_per_image"]
    return (
        f"{found['device']}, torch {found['torch']}, load {found['load']:.1f} from other work; {found['model']}, "
        f"{CLIENTS} clients, photos of {SIDE} × {SIDE}.\n\n| | |\n|---|---:|\n"
        f"| in one process | {rates['process']:.1f} images/s |\n"
        f"| through the service | {rates['service']:.1f} images/s |\n"
        f"| processor time of an image in one process | {worked['in one process']:.0f} ms |\n"
        f"| the same through the service: replica, Ray's proxy, the rest of Ray, clients | "
        f"{', '.join(f'{worked[name]:.0f}' for name in PROCESSES[1:])} ms |\n"
        f"| share, by turns | {found['throughput']['share']:.0%} ({low:.0%}–{high:.0%}) |\n"
        f"| answers before and after one of two replicas was killed | {killed['answers_before']}, "
        f"{killed['answers_after']} |\n"
        f"| lost, wrong | {killed['lost']}, {killed['wrong']} |\n"
        f"| longest pause after the kill | {killed['longest_pause_seconds']:.1f} s |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--seconds", type=float, default=15.0, help="of load before the kill; twice as many after")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.json")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    found = {"device": device_name(), "torch": torch.__version__, "model": arguments.model, "load": os.getloadavg()[0]}
    found["throughput"] = throughput(arguments.model, cores)
    print(json.dumps(found["throughput"], indent=1), flush=True)
    found["killed"] = killed(arguments.model, arguments.seconds)
    text = markdown(found)
    print(text)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
