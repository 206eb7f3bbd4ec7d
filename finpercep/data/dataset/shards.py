"""The plan of a data set: which photos go to which split and file, and what making one file means."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finpercep.data.dataset.config import MakeConfig
from finpercep.data.dataset.maker import Maker
from finpercep.data.dataset.parquet import rows_of, shard_metadata, write_shard
from finpercep.data.randomness import seed_of
from finpercep.data.sources.kinds import SourceSpec
from finpercep.data.sources.protocol import Photo
from finpercep.io.color_profiles import CONVERSION

SPLITS = ("train", "validation")  # the names that `datasets` gives to files called so


@dataclass(frozen=True)
class Shard:
    """One file to make.

    Attributes:
        path: inside the data set.
        photos: whose samples it holds.
        converted: whether colors of any of its inputs are converted to sRGB.
    """

    path: str
    photos: tuple[Photo, ...]
    converted: bool = False


@dataclass(frozen=True)
class Job:
    """What a worker needs to make any shard of one data set."""

    out: Path
    config: MakeConfig
    specs: tuple[SourceSpec, ...]
    features_fingerprint: str
    settings: str
    device: str = "cpu"


@dataclass
class ShardReport:
    """What became of a shard: rows, and the seconds and images of each stage."""

    path: str
    photos: int
    rows: int
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def plan_shards(photos: Sequence[Photo], config: MakeConfig) -> list[Shard]:
    """Shards of both splits; which photos are held out depends on the seed and the ids alone."""
    order = sorted(photos, key=lambda photo: seed_of(config.seed, "split", photo.id))
    held = round(config.val_share * len(photos))
    if config.val_share and len(photos) > 1:
        held = max(1, held)
    parts = dict(zip(SPLITS, (order[held:], order[:held]), strict=True))
    shards = []
    for split, members in parts.items():
        ordered = sorted(members, key=lambda photo: photo.id)
        step = config.photos_per_shard
        groups = [tuple(ordered[first : first + step]) for first in range(0, len(ordered), step)]
        for number, group in enumerate(groups):
            shards.append(Shard(f"data/{split}-{number:05d}-of-{len(groups):05d}.parquet", group))
    return shards


def is_made(job: Job, shard: Shard) -> bool:
    """Whether the file is there, whole, of these settings, and with its colors converted as they are now."""
    metadata, expected = shard_metadata(job.out / shard.path), _identity(job, shard)
    return all(metadata.get(name) == expected.get(name) for name in ("finpercep.settings", "finpercep.colors"))


def _identity(job: Job, shard: Shard) -> dict[str, str]:
    """What a file says of how it was made. Files without any converted colors say nothing of them."""
    colors = {"finpercep.colors": CONVERSION} if shard.converted else {}
    return {"finpercep.settings": job.settings, **colors}


def make_shard(maker: Maker, job: Job, shard: Shard) -> ShardReport:
    """Make one file; a function of the job and the shard alone, whatever made the others."""
    config = job.config
    maker.left_out.clear()
    maker.clock.seconds.clear()
    maker.clock.counts.clear()
    constants = {
        "alpha": config.alpha,
        "normalize": config.normalize,
        "features": config.features.partition(":")[0],
        "seed": config.seed,
        "features_fingerprint": job.features_fingerprint,
        "settings": job.settings,
    }

    def parts() -> Iterator[dict[str, list[Any]]]:
        for samples in maker.parts(shard.photos):
            with maker.clock.stage("encode", len(samples)):
                columns = rows_of(samples, constants)
            yield columns

    metadata = {
        **_identity(job, shard),
        "finpercep.left_out": lambda: json.dumps(maker.left_out),
    }
    rows = write_shard(job.out / shard.path, parts(), metadata)
    clock = maker.clock
    return ShardReport(shard.path, len(shard.photos), rows, dict(clock.seconds), dict(clock.counts))


def open_maker(job: Job) -> Maker:
    """The models of a job, in this process, on one thread: results must not depend on how many workers share it."""
    import torch

    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Maker(job.config, job.specs, device=job.device)
