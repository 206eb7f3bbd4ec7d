"""Scores of many files on a Ray cluster: what one process gives in deterministic mode, byte for byte."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from finpercep.engine.files import FileScore, map_file_names, names_of, score_named
from finpercep.engine.scorer import Scorer
from finpercep.io.parquet import Row
from finpercep.runs.cluster import connect, worker_device

__all__ = ["score_files_on_ray"]

CHUNK = 8
"""Files that a worker takes at once; on a GPU, some batches of them."""
CHUNK_ROWS = 32
"""Of Parquet files: a worker passes over what stands before them in their row group."""
CHUNK_GPU = 128
_NONE = ""
_FIGURES = ("score", "map_mean", "map_worst")


def score_files_on_ray(
    model: str,
    files: Sequence[Path] | Sequence[Row],
    *,
    maps: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    workers: int = 0,
) -> Iterator[FileScore]:
    """As `score_files` with `Scorer(model, deterministic=True)`: the same results in the same order.

    Args:
        model: what `load_reward` takes, on every machine of the cluster.
        files: files, or rows of Parquet files, that every machine of the cluster reads under these names.
        maps: folder that every machine of the cluster writes to.
        device: "cpu", one core for each worker, "cuda", one GPU for each, or "auto": GPUs, if the cluster has any.
        workers: at most; 0 is as many as the cluster has cores or GPUs.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: there is no cluster, or a worker cannot begin.
        ValueError: another device.
    """
    if not files:
        return
    worker_device(device, {})
    ray = connect("engine ray", "ray")
    from ray import data

    resources = ray.cluster_resources()
    device = worker_device(device, resources)
    gpu = device == "cuda"
    most = int(resources.get("GPU" if gpu else "CPU", 0))
    if most < 1:
        raise RuntimeError(f"engine ray: expected {'GPUs' if gpu else 'cores'} in the cluster, got none")
    paths, chunk = names_of(files), CHUNK_ROWS if isinstance(files[0], Row) else CHUNK
    chunks = math.ceil(len(files) / (CHUNK_GPU if gpu else chunk))
    names = map_file_names(paths, Path(os.path.abspath(maps))) if maps is not None else [Path(_NONE)] * len(paths)
    rows = [
        {"index": index, "shown": str(paths[index]), "map": str(names[index]), **_place(files[index])}
        for index in range(len(files))
    ]
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    found = data.from_items(rows, override_num_blocks=chunks).map_batches(
        _Worker,
        fn_constructor_args=(model, device),
        batch_size=None,
        compute=data.ActorPoolStrategy(size=min(workers or most, most, chunks)),
        num_cpus=1,
        num_gpus=1 if gpu else 0,
    )
    for row in found.iter_rows():
        path, error = paths[int(row["index"])], str(row["error"])
        score, mean, worst = (float(row[name]) for name in _FIGURES)
        yield FileScore(path, error=error) if error else FileScore(path, score, mean, worst)


class _Worker:
    """A Ray actor: holds the model, scores the files that it is handed."""

    def __init__(self, model: str, device: str) -> None:
        torch.set_num_threads(1)
        self.scorer = Scorer(model, device=device, deterministic=True, lanes=1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        files = [_file(batch, i) for i in range(len(batch["path"]))]
        names = [Path(str(name)) for name in batch["map"]]
        found = list(score_named(self.scorer, files, names if names[0] != Path(_NONE) else None))
        return {
            "index": batch["index"],
            **{name: [getattr(one, name) for one in found] for name in _FIGURES},
            "error": [_as_given(one.error, batch, i) for i, one in enumerate(found)],
        }


def _place(file: Path | Row) -> dict[str, Any]:
    """Where a worker finds an image."""
    if isinstance(file, Row):
        return {"path": os.path.abspath(file.file), "column": file.column, "number": file.number}
    return {"path": os.path.abspath(file), "column": _NONE, "number": 0}


def _file(batch: dict[str, Any], i: int) -> Any:
    """What `_place` was made of, by its absolute path."""
    path, column = Path(str(batch["path"][i])), str(batch["column"][i])
    return Row(str(batch["shown"][i]), path, column, int(batch["number"][i])) if column else path


def _as_given(error: str | None, batch: dict[str, Any], i: int) -> str:
    """The reason without the absolute path that a worker reads."""
    return (error or _NONE).replace(str(batch["path"][i]), str(batch["shown"][i]))
