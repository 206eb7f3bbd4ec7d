"""`make_dataset`: the whole way from folders to a data set, resumable at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finpercep.data.dataset.config import MakeConfig, settings_hash, settings_of
from finpercep.data.dataset.engines import check_engine, run_shards
from finpercep.data.dataset.hashes import Hashes
from finpercep.data.dataset.maker import Maker
from finpercep.data.dataset.pairs import listing_hash, match_photos
from finpercep.data.dataset.parquet import shard_metadata
from finpercep.data.dataset.preview import PREVIEW, remove_pages, write_card, write_preview
from finpercep.data.dataset.resume import claim_folder, find_missing
from finpercep.data.dataset.shards import Job, Shard, ShardReport, plan_shards
from finpercep.data.sources.kinds import parse_sources
from finpercep.data.sources.protocol import Photo
from finpercep.io.files import write_json
from finpercep.io.images import ImageError, load_image
from finpercep.io.parquet import require_pyarrow
from finpercep.runs.cluster import worker_device
from finpercep.runs.devices import check_device
from finpercep.runs.lock import folder_lock


@dataclass
class MadeDataset:
    """What `make_dataset` leaves: `manifest` as written, and the reports of the shards that this run made."""

    folder: Path
    manifest: dict[str, Any]
    reports: list[ShardReport]


def make_dataset(
    gt: str,
    sr: Sequence[str],
    out: str | os.PathLike[str],
    config: MakeConfig | None = None,
    *,
    lr: str | None = None,
    workers: int = 1,
    engine: str = "local",
    device: str = "cpu",
    verify: bool = False,
    progress: Callable[[int, int, ShardReport | None], None] | None = None,
) -> MadeDataset:
    """Make a data set, or go on with one that was stopped; the same inputs and settings give the same bytes.

    Files that are finished are kept, unless they no longer hold what was made or an input has changed since: those are
    made again, and a line of the log (logger "finpercep.data.dataset.resume") says why.

    Args:
        gt: folder or pattern of photos (see `pairs.find_images`).
        sr: sources (see `sources.parse_source`).
        out: its folder, which may lie among the photos: `data/*.parquet`, `manifest.json`, `settings.json`, a card and
            a preview page.
        config: how samples are made.
        lr: folder or pattern of low-resolution versions; without it they are made by `degradations`.
        workers, engine: see `engines.run_shards`.
        device: of the models.
        verify: read all inputs and finished files to see whether they changed; else only those are read whose size,
            time of change or inode is another than before.
        progress: called with (shards done, shards in all, report) at the start and after each shard.

    Raises:
        ImageError: inputs that are missing, do not match, cannot be read or give no sample.
        ValueError: settings that make no sense, a device that this machine does not have, or a folder that was made
            with others.
        FolderInUseError: another process makes a data set there; the message says which.
        OSError: no room, no permission; what is complete stays, and the same command goes on.
        ImportError: a package that an option needs; the message names the extra.
    """
    require_pyarrow()
    check_engine(engine)
    if engine == "local":
        check_device(device)
    else:
        worker_device(device, {})
    config = config or MakeConfig()
    specs = parse_sources(sr)
    results = {spec.name: spec.value for spec in specs if spec.kind == "folder"}
    folder = Path(out)
    photos, problems = match_photos(gt, results, lr, leave_out=folder / PREVIEW)
    if problems and not config.skip_bad:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ImageError(f"{shown}. --skip-bad leaves such photos out")
    if not photos:
        raise ImageError(f"{gt}: expected a photo with results of every source, got none: {problems[0]}")
    for name in results:
        check_results(name, photos)
    maker = Maker(config, specs, device="cpu")
    features = maker.features.fingerprint if maker.features is not None else ""
    settings = settings_of(
        config,
        sources={source.name: source.fingerprint for source in maker.sources},
        masks=[(kind.name, kind.fingerprint) for kind in maker.masks.kinds],
        features=features,
        photos=len(photos),
        listing=listing_hash(photos),
    )
    del maker
    with folder_lock(folder):
        hashes = Hashes(folder, verify=verify)
        settings = claim_folder(folder, settings, hashes, photos)
        hashes.read_inputs(photos)
        job = Job(folder, config, tuple(specs), features, settings_hash(settings), device)
        shards = [replace(shard, converted=hashes.has_profile(shard.photos)) for shard in plan_shards(photos, config)]
        missing = find_missing(job, shards, hashes)
        done = len(shards) - len(missing)
        if progress is not None:
            progress(done, len(shards), None)
        reports = []
        photos_of = {shard.path: shard.photos for shard in missing}
        for report in run_shards(job, missing, engine=engine, workers=workers) if missing else ():
            hashes.add_shard(report.path, folder / report.path, photos_of[report.path])
            reports.append(report)
            done += 1
            if progress is not None:
                progress(done, len(shards), report)
        manifest = write_manifest(folder, job, shards, problems, hashes)
        if not sum(manifest["rows"].values()):
            remove_pages(folder)
            raise ImageError(
                f"{folder}: expected samples, got none: {(manifest['left_out'] or ['nothing was left out'])[0]}; "
                f"left_out in {folder / 'manifest.json'} lists what was left out"
            )
        write_card(folder, settings, manifest)
        write_preview(folder, settings, manifest)
        return MadeDataset(folder, manifest, reports)


def check_results(source: str, photos: Sequence[Photo]) -> None:
    """Refuse a source whose results are the photos themselves; reads until one differs.

    Raises:
        ImageError: every result of `source` equals its photo.
    """
    for photo in photos:
        try:
            if not torch.equal(load_image(photo.results[source]), load_image(photo.gt)):
                return
        except ImageError:  # named where it is needed
            return
    raise ImageError(f"{source}: expected super-resolved versions, got {len(photos)} images that equal their photos")


def write_manifest(
    folder: Path, job: Job, shards: Sequence[Shard], problems: Sequence[str], hashes: Hashes
) -> dict[str, Any]:
    """`manifest.json`: rows, sizes and hashes of every file, what was left out, and which inputs were replaced."""
    files, left_out = [], list(problems)
    for shard in shards:
        path = folder / shard.path
        metadata = shard_metadata(path)
        left_out += json.loads(metadata.get("finpercep.left_out", "[]"))
        rows = require_pyarrow().parquet.read_metadata(path).num_rows
        known = hashes.shards[shard.path]
        files.append({"file": shard.path, "rows": rows, "bytes": known["bytes"], "sha256": known["sha256"]})
    splits = {
        split: sum(f["rows"] for f in files if f["file"].startswith(f"data/{split}-"))
        for split in ("train", "validation")
    }
    manifest = {
        "settings": job.settings,
        "photos": sum(len(shard.photos) for shard in shards),
        "rows": splits,
        "files": files,
        "left_out": left_out,
    }
    if replaced := hashes.replaced_inputs():
        manifest["replaced_inputs"] = [str(name) for name in replaced]
    for stale in (folder / "data").glob(".*.tmp"):  # of workers that were killed
        stale.unlink(missing_ok=True)
    write_json(folder / "manifest.json", manifest)
    return manifest
