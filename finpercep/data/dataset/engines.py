"""Where shards are made: in this process, in worker processes, or on a Ray cluster. All give the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.synchronize import Event
from typing import Any

from finpercep.data.dataset.maker import Maker
from finpercep.data.dataset.shards import Job, Shard, ShardReport, make_shard, open_maker
from finpercep.data.sources.protocol import Photo
from finpercep.runs.cluster import connect, worker_device

ENGINES = ("local", "ray")
ATTEMPTS = 3  # at a shard whose worker was killed, before it is held to be the reason


def check_engine(engine: str) -> None:
    """Raises ValueError where `run_shards` would not know the name."""
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")


def run_shards(job: Job, shards: Sequence[Shard], *, engine: str, workers: int) -> Iterator[ShardReport]:
    """Make all shards; reports come as they are done, in any order.

    Args:
        engine: "local", or "ray" for the Ray cluster that `RAY_ADDRESS` names (else one is started here).
        workers: processes or Ray actors; 1 with "local" works in this process.

    Raises: what making a shard raises; shards that are done stay.
    """
    check_engine(engine)
    if engine == "ray":
        yield from _run_ray(job, shards, workers)
    elif workers <= 1:
        yield from _run_here(job, shards)
    else:
        yield from _run_processes(job, shards, workers)


def _run_here(job: Job, shards: Sequence[Shard]) -> Iterator[ShardReport]:
    import torch

    threads = torch.get_num_threads()
    try:
        maker = open_maker(job)
        for shard in shards:
            yield make_shard(maker, job, shard)
    finally:
        torch.set_num_threads(threads)


def _run_processes(job: Job, shards: Sequence[Shard], workers: int) -> Iterator[ShardReport]:
    """A pool that survives the death of its workers: what they had under way is made again. None outlives this."""
    left = list(shards)
    tried: Counter[str] = Counter()
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    while left:
        ended, end = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(min(workers, len(left)), context, _start_worker, (job, begun, ended))
        try:
            pending: dict[Future[ShardReport], Shard] = {}
            queue = iter(list(left))
            more = True
            while more or pending:
                while more and len(pending) < 2 * workers:  # few enough that a death blames few shards
                    shard = next(queue, None)
                    more = shard is not None
                    if shard is not None:
                        pending[pool.submit(_make_in_worker, shard)] = shard
                for done in wait(pending, return_when=FIRST_COMPLETED).done if pending else ():
                    report = done.result()
                    left.remove(pending.pop(done))
                    yield report
        except BrokenProcessPool as error:
            if not begun.is_set():
                raise RuntimeError(
                    "workers: expected processes that start, got none; a script that makes a data set with several "
                    'needs to do so below `if __name__ == "__main__":`'
                ) from error
            tried.update(shard.path for shard in pending.values())
            worst, times = tried.most_common(1)[0] if tried else ("?", ATTEMPTS)
            if times >= ATTEMPTS:
                raise RuntimeError(
                    f"workers were killed {times} times, at last near {worst}: expected enough memory for "
                    f"{workers} workers; try fewer"
                ) from error
        finally:
            end.close()  # what is still under way is not wanted, and must not be written once this has returned
            pool.shutdown(cancel_futures=True)
            ended.close()


_worker: tuple[Maker, Job] | Exception | None = None


def _start_worker(job: Job, begun: Event, ended: Connection) -> None:
    """An error is kept for the first shard: raised here, it would only say that the worker died."""
    global _worker
    begun.set()
    threading.Thread(target=_end_with_parent, args=(ended,), daemon=True).start()
    try:
        _worker = (open_maker(job), job)
    except Exception as error:
        _worker = error


def _end_with_parent(ended: Connection) -> None:
    """End when the parent closes its side of the pipe, or was killed: a worker would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_any([ended, parent.sentinel])
    os._exit(1)


def _make_in_worker(shard: Shard) -> ShardReport:
    if isinstance(_worker, Exception):
        raise _worker
    assert _worker is not None
    maker, job = _worker
    return make_shard(maker, job, shard)


class _RayWorker:
    """A Ray actor: holds the models, makes the shards that it is handed.

    Args:
        folder: where the command runs; the cluster may have begun in another, and paths may be relative.
    """

    def __init__(self, job: Job, folder: str) -> None:
        self.job = job
        if os.path.isdir(folder):
            os.chdir(folder)
        try:
            self.maker: Maker | Exception = open_maker(job)
        except Exception as error:  # Ray would try again, and tell at length of its own
            self.maker = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        reports, errors = [], []
        for text in batch["shard"]:
            report, error = self._made(_shard_from_json(str(text)))
            reports.append(report)
            errors.append(error)
        return {"report": reports, "error": errors}

    def _made(self, shard: Shard) -> tuple[str, bytes]:
        """The report as JSON, or the pickled error; the other one is empty."""
        try:
            if isinstance(self.maker, Exception):
                raise self.maker
            return json.dumps(asdict(make_shard(self.maker, self.job, shard))), b""
        except Exception as error:
            return "", _pickled(error)


def _pickled(error: Exception) -> bytes:
    try:
        pickle.loads(found := pickle.dumps(error))
    except Exception:  # one of somebody's source
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return found


def _run_ray(job: Job, shards: Sequence[Shard], workers: int) -> Iterator[ShardReport]:
    """Ray Data over the shards; Ray starts a killed actor again and hands it the same shard."""
    ray = connect("engine ray", "ray")
    job = replace(job, device=worker_device(job.device, ray.cluster_resources()))
    from ray import data

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = data.from_items([{"shard": _shard_to_json(shard)} for shard in shards], override_num_blocks=len(shards))
    reports = rows.map_batches(
        _RayWorker,
        fn_constructor_args=(job, os.getcwd()),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(workers, len(shards))),
        num_cpus=1,
        num_gpus=1 if job.device == "cuda" else 0,
    )
    for row in reports.iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])
        yield ShardReport(**json.loads(row["report"]))


def _shard_to_json(shard: Shard) -> str:
    photos = [
        {
            "id": photo.id,
            "gt": str(photo.gt),
            "results": {name: str(path) for name, path in photo.results.items()},
            "lr": None if photo.lr is None else str(photo.lr),
        }
        for photo in shard.photos
    ]
    return json.dumps({"path": shard.path, "photos": photos, "converted": shard.converted})


def _shard_from_json(text: str) -> Shard:
    from pathlib import Path

    data = json.loads(text)
    photos = tuple(
        Photo(
            photo["id"],
            Path(photo["gt"]),
            {name: Path(path) for name, path in photo["results"].items()},
            None if photo["lr"] is None else Path(photo["lr"]),
        )
        for photo in data["photos"]
    )
    return Shard(data["path"], photos, data["converted"])
