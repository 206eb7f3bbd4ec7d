"""Which contents a data set was made of, and which it has, so that neither changes unnoticed.

`.hashes.jsonl` stands beside the settings. Lines are only added: each says what one file held when it was read, and of
a finished file of samples also what its inputs held. It is a record of this machine, no part of the data set.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from finpercep.data.sources.protocol import Photo
from finpercep.io.fingerprints import file_hash
from finpercep.io.images import is_converted

__all__ = ["HASHES", "Hashes", "Input", "input_files"]

HASHES = ".hashes.jsonl"
_READERS = 4  # files read at once, so that a network drive does not only wait

_NAMES = ({"photo", "file", "sha256"}, {"shard", "sha256", "inputs"})  # what the two kinds of lines have

Entry = dict[str, Any]


class Input(NamedTuple):
    """A file that samples are made of: the photo's id, and which of its files: "gt", "lr" or "sr SOURCE"."""

    photo: str
    file: str

    def __str__(self) -> str:
        return f"{self.photo} ({self.file})"


def input_files(photos: Iterable[Photo]) -> dict[Input, Path]:
    """Every file that samples of these photos are made of."""
    files = {}
    for photo in photos:
        files[Input(photo.id, "gt")] = photo.gt
        if photo.lr is not None:
            files[Input(photo.id, "lr")] = photo.lr
        files |= {Input(photo.id, f"sr {source}"): path for source, path in photo.results.items()}
    return files


class Hashes:
    """The record of one data set's folder.

    Args:
        folder: of the data set.
        verify: read every file, also where size, time of change and inode are those of the record.
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        self.path, self.verify = folder / HASHES, verify
        self.inputs: dict[Input, list[Entry]] = defaultdict(list)  # oldest first
        self.shards: dict[str, Entry] = {}  # the newest
        content = self.path.read_bytes() if self.path.is_file() else b""
        self._start = b"" if content.endswith(b"\n") or not content else b"\n"  # after half a line, left by a kill
        for entry in _entries(content):
            self._remember(entry)

    def read_inputs(self, photos: Sequence[Photo]) -> None:
        """Bring the record up to date with the inputs; reads what is new or seems changed.

        Raises:
            OSError: a file is gone, or the record cannot be written.
        """
        with ThreadPoolExecutor(_READERS) as pool:
            for entry in pool.map(self._read_input, *zip(*input_files(photos).items(), strict=True)):
                if entry is not None:
                    self._append(entry)

    def forget(self) -> None:
        """Begin the record anew."""
        self.inputs.clear()
        self.shards.clear()
        self.path.unlink(missing_ok=True)
        self._start = b""

    def has_profile(self, photos: Iterable[Photo]) -> bool:
        """Whether any of their files has colors that reading converts."""
        return any(self.inputs[name][-1].get("profile", False) for name in input_files(photos))

    def changed_inputs(self, shard: str, photos: Iterable[Photo]) -> list[Input]:
        """The inputs that are not what the finished file `shard` was made of."""
        made_of = self._made_of(shard, photos)
        return [name for name, content in self._contents(photos).items() if content != made_of.get(name)]

    def replaced_inputs(self) -> list[Input]:
        """The inputs that are not what they were at the first run."""
        return sorted(name for name, entries in self.inputs.items() if entries[-1]["sha256"] != entries[0]["sha256"])

    def is_intact(self, shard: str, path: Path, photos: Iterable[Photo], expected: str | None) -> bool:
        """Whether a finished file holds what was made.

        Args:
            expected: its SHA-256 by the manifest, for a file of which the record says nothing.
        """
        known, stamp = self.shards.get(shard), _stamp(path)
        if known is not None and _same_file(known, stamp) and not self.verify:
            return True
        found = file_hash(path)
        if found != (known["sha256"] if known is not None else expected or found):
            return False
        if known is None or not _same_file(known, stamp):
            self._add_shard(shard, stamp, found, self._made_of(shard, photos))
        return True

    def add_shard(self, shard: str, path: Path, photos: Iterable[Photo]) -> None:
        """Record a file that was just made of the inputs as they are."""
        self._add_shard(shard, _stamp(path), file_hash(path), self._contents(photos))

    def _contents(self, photos: Iterable[Photo]) -> dict[Input, str]:
        return {name: self.inputs[name][-1]["sha256"] for name in input_files(photos)}

    def _made_of(self, shard: str, photos: Iterable[Photo]) -> dict[Input, str]:
        """What the inputs of a finished file held.

        Of one that the record does not know (an older version made it, or a kill came first) only this is sure: if its
        inputs never changed, it was made of them.
        """
        if shard in self.shards:
            return {Input(photo, file): content for photo, file, content in self.shards[shard]["inputs"]}
        contents = {name: {entry["sha256"] for entry in self.inputs[name]} for name in input_files(photos)}
        return {name: only for name, (only, *others) in contents.items() if not others}

    def _read_input(self, name: Input, path: Path) -> Entry | None:
        """What is to be added to the record; None where it is up to date."""
        stamp = _stamp(path)
        known = self.inputs[name][-1] if name in self.inputs else None
        if known is not None and known["sha256"] and _same_file(known, stamp) and not self.verify:
            return None
        try:
            content = file_hash(path)
        except OSError:  # reported, or left out, where the image is needed
            content = ""
        entry = {**name._asdict(), **stamp, "sha256": content}
        if is_converted(path):
            entry["profile"] = True
        return None if entry == known else entry

    def _add_shard(self, shard: str, stamp: Entry, content: str, inputs: dict[Input, str]) -> None:
        self._append({"shard": shard, **stamp, "sha256": content, "inputs": [[*name, i] for name, i in inputs.items()]})

    def _append(self, entry: Entry) -> None:
        try:
            with open(self.path, "ab") as file:
                file.write(self._start + json.dumps(entry).encode() + b"\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._start = b""
        self._remember(entry)

    def _remember(self, entry: Entry) -> None:
        if "shard" in entry:
            self.shards[entry["shard"]] = entry
        else:
            self.inputs[Input(entry["photo"], entry["file"])].append(entry)


def _entries(content: bytes) -> Iterator[Entry]:
    """The lines that are whole: a kill may have left a part of one."""
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and any(entry.keys() >= names for names in _NAMES):
            yield entry


def _stamp(path: Path) -> Entry:
    """What tells without reading that a file is the one that was read: size, time of change (ns) and inode."""
    stat = path.stat()
    return {"bytes": stat.st_size, "time": stat.st_mtime_ns, "inode": stat.st_ino}


def _same_file(entry: Entry, stamp: Entry) -> bool:
    return all(entry.get(name) == value for name, value in stamp.items())
