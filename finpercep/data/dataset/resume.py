"""Going on with a data set: whose folder it is, and which of its finished files are still what they should be."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finpercep.data.dataset.config import settings_difference
from finpercep.data.dataset.hashes import HASHES, Hashes, Input, input_files
from finpercep.data.dataset.shards import Job, Shard, is_made
from finpercep.data.sources.protocol import Photo
from finpercep.io.files import UNFINISHED, write_json
from finpercep.io.reasons import printable
from finpercep.runs.lock import LOCK

__all__ = ["claim_folder", "find_missing"]

_log = logging.getLogger(__name__)


def claim_folder(folder: Path, settings: dict[str, Any], hashes: Hashes, photos: Sequence[Photo]) -> dict[str, Any]:
    """Write `settings.json`, or check that what is there is the same; sizes of inputs may differ where their contents
    are on record.

    Returns: the folder's settings.
    Raises:
        ValueError: the folder holds a data set of other settings (the message says which), or something else.
    """
    path = folder / "settings.json"
    begun = _holds_more(folder)
    if begun and path.is_file():
        try:
            old = json.loads(path.read_text())
            old.keys()
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: expected the settings of a data set, got {error}") from error
        changed = settings_difference(old, {**settings, "inputs": old.get("inputs")})
        if old.get("inputs") != settings["inputs"]:
            changed += _inputs_difference(hashes, photos)
        if changed:
            raise ValueError(
                f"{folder}: made with other settings: {'; '.join(changed)}. Use another folder, or the same settings"
            )
        return _kept({**settings, "inputs": old.get("inputs")}, old)
    if begun:
        raise ValueError(f"{folder}: expected a new or empty folder, or one that this command made")
    hashes.forget()  # of an attempt that made nothing, whose inputs may have been others
    write_json(path, settings)
    return settings


def _kept(settings: Any, old: Any) -> Any:
    """The old values, which equal the new ones, in the order of the new: 1 and 1.0 have different hashes."""
    if not isinstance(settings, dict) or not isinstance(old, dict):
        return old
    return {name: _kept(value, old.get(name, value)) for name, value in settings.items()}


def _holds_more(folder: Path) -> bool:
    """Whether there is more in a folder than what a run leaves that ended before its first file was whole."""
    names = {path.name for path in folder.iterdir() if not path.match(UNFINISHED)} if folder.is_dir() else set()
    return not names <= {LOCK, HASHES, "settings.json", "data"} or any((folder / "data").glob("*.parquet"))


def _inputs_difference(hashes: Hashes, photos: Sequence[Photo]) -> list[str]:
    """How the files of `photos` differ from those on record, in names; contents may differ."""
    if not hashes.inputs:
        return [f"inputs: not those that the data set was made of, by size (no {HASHES} says which)"]
    before, now = hashes.inputs.keys(), input_files(photos).keys()
    lines = []
    for what, names in (("new", now - before), ("gone", before - now)):
        if names:
            lines.append(f"inputs: {what}: {_some(sorted(map(str, names)))}")
    return lines


def find_missing(job: Job, shards: Sequence[Shard], hashes: Hashes) -> list[Shard]:
    """The files that are to be made, also again: those that no longer hold what was made, or whose inputs changed.

    What is made again is named in the log, and the manifest is removed: the data set is not complete until then.
    """
    finished = _manifest_hashes(job.out)
    missing: list[Shard] = []
    damaged: list[str] = []
    changed: set[Input] = set()
    outdated = 0
    for shard in shards:
        path = job.out / shard.path
        if not path.exists():
            pass
        elif not is_made(job, shard):
            damaged.append(shard.path)
        elif inputs := hashes.changed_inputs(shard.path, shard.photos):
            changed.update(inputs)
            outdated += 1
        elif hashes.is_intact(shard.path, path, shard.photos, finished.get(shard.path)):
            continue
        else:
            damaged.append(shard.path)
        missing.append(shard)
    if changed:
        _log.warning(
            "%s: inputs changed since samples were made of them: %s; %d of %d files are made again",
            *(job.out, _some(sorted(map(str, changed))), outdated, len(shards)),
        )
    if damaged:
        _log.warning("%s: not what would be made now: %s; made again", job.out, _some(damaged))
    if missing:
        (job.out / "manifest.json").unlink(missing_ok=True)
    return missing


def _some(names: Sequence[str]) -> str:
    names = [printable(name) for name in names]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _manifest_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a manifest names, {} without one."""
    try:
        return {entry["file"]: entry["sha256"] for entry in json.loads((folder / "manifest.json").read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
