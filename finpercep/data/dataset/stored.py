"""Reading a data set that `make_dataset` made: its photos as scenes, its samples as training triplets.

Nothing is held in memory but the rows' names: every sample is read from its file when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from finpercep.data.dataset.parquet import decode
from finpercep.data.randomness import choose
from finpercep.data.scenes import Scene, StoredSample
from finpercep.io.parquet import require_pyarrow

__all__ = ["StoredScene", "is_stored", "row_sample", "stored_scenes"]

SPLIT_NAMES = {"val": "validation"}


@dataclass
class StoredScene(Scene):
    """The samples of one photo (or crop of one): a row group of a Parquet file.

    Attributes:
        group: number of the row group in `gt_path`, the file.
        rows: numbers of the rows in it, by source.
    """

    group: int = 0
    rows: dict[str, list[int]] = field(default_factory=dict)

    @property
    def gt(self) -> Tensor:
        return decode(self._cells(["gt"])[0]["gt"])

    @property
    def lr(self) -> Tensor | None:
        """The low-resolution version, uint8 (3,h,w); None where none was stored."""
        cell = self._cells(["lr"])[0]["lr"]
        return None if cell is None else decode(cell)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the photo."""
        row = self._cells(["height", "width"])[0]
        return row["height"], row["width"]

    def sr(self, source: str) -> Tensor:
        return decode(self._cells(["sr"])[self.rows[source][0]]["sr"])

    def only(self, source: str) -> StoredScene:
        one = {source: self.sr_paths[source]}
        return replace(self, sr_paths=one, rows={source: self.rows[source]})

    def place(self) -> list[Any]:
        """The row group and the rows of each source."""
        return [self.group, self.rows]

    def sample(self, number: int) -> StoredSample:
        """The sample of one row of the group."""
        row = dict(self._cells(None)[number])
        images = ("gt", "sr", "syn", "mask", "target", "target_sr")
        gt, sr, syn, mask, target, target_sr = (decode(row.pop(name)) for name in images)
        return StoredSample(gt, sr, syn, mask, target, target_sr, row)

    def draw(self, generator: torch.Generator) -> StoredSample:
        """A sample of one of `sources`, all equally likely."""
        numbers = [number for source in self.sources for number in self.rows[source]]
        return self.sample(choose(numbers, generator))

    def _cells(self, columns: list[str] | None) -> _Group:
        table = _open(self.gt_path).read_row_group(self.group, columns=columns)
        return _Group(table)


class _Group(Sequence[dict[str, Any]]):
    """Rows of a table, turned into Python only where they are asked for."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: Any) -> Any:
        return self.table.slice(number, 1).to_pylist()[0]


def _open(path: Path) -> Any:
    """The file of now: a set that was made again has others under the same names."""
    state = path.stat()
    return _opened(str(path), state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=64)
def _opened(path: str, _mtime_ns: int, _inode: int) -> Any:
    return require_pyarrow().parquet.ParquetFile(path, memory_map=True)


def is_stored(root: str | Path) -> bool:
    """Whether a folder is a data set of `make_dataset`."""
    return (Path(root) / "settings.json").is_file() and (Path(root) / "data").is_dir()


def stored_scenes(
    root: str | Path, split: str, *, leave_out: Sequence[str] = (), may_be_empty: bool = False
) -> list[StoredScene]:
    """The scenes of one split, "train" or "val"; see `loading.load_scenes`.

    Args:
        root: the data set.
        split: the split.
        leave_out: sources that are left out, and with them the scenes that have no others.
        may_be_empty: without a scene in the split, the answer is an empty list.

    Raises:
        FileNotFoundError: the data set is not complete: no manifest.
        ValueError: no scene in the split (unless it may be empty), a source that it does not have, or a damaged file.
    """
    root = Path(root)
    manifest = root / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest}: not found; the data set is not complete, run its command again")
    prefix = f"data/{SPLIT_NAMES.get(split, split)}-"
    files = _listed(manifest)
    scenes = [scene for file in files if str(file.relative_to(root)).startswith(prefix) for scene in _scenes(file)]
    if not scenes and not may_be_empty:
        raise ValueError(f"{root}: no scene in split {split!r}")
    known = {source for scene in scenes for source in scene.rows}
    unknown = set(leave_out) - known
    if unknown:
        raise ValueError(f"leave_out: {sorted(unknown)} not among the sources {sorted(known)}")
    for scene in scenes:
        for source in leave_out:
            scene.rows.pop(source, None)
            scene.sr_paths.pop(source, None)
    return [scene for scene in scenes if scene.rows]


def _listed(manifest: Path) -> list[Path]:
    """The files of a data set.

    Raises:
        ValueError: not the manifest of a data set, or one that names a file outside its folder.
    """
    try:
        names = [PurePath(entry["file"]) for entry in json.loads(manifest.read_text())["files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{manifest}: expected the manifest of a data set, got {error!r}") from error
    for name in names:
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{manifest}: expected files inside its folder, got {str(name)!r}")
    return [manifest.parent / name for name in names]


def _scenes(file: Path) -> list[StoredScene]:
    pa = require_pyarrow()
    try:
        shard = _open(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{file}: expected a Parquet file, got {error}") from error
    columns = shard.read(columns=["id", "source"]).to_pydict()
    scenes, first = [], 0
    for group in range(shard.num_row_groups):
        rows: dict[str, list[int]] = {}
        count = shard.metadata.row_group(group).num_rows
        for number, source in enumerate(columns["source"][first : first + count]):
            rows.setdefault(source, []).append(number)
        name = columns["id"][first].rsplit("|", 2)[0]
        scenes.append(StoredScene(name, file, dict.fromkeys(rows, file), group=group, rows=rows))
        first += count
    return scenes


def row_sample(row: Mapping[str, Any]) -> StoredSample:
    """A row of `datasets.load_dataset(…)` (image columns as PIL images, or undecoded) as a sample."""
    import numpy as np

    def tensor(cell: Any) -> Tensor:
        if isinstance(cell, Mapping):
            return decode(cell)
        pixels = torch.from_numpy(np.array(cell))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()

    names = ("gt", "sr", "syn", "mask", "target", "target_sr")
    rest = {name: value for name, value in row.items() if name not in (*names, "lr")}
    gt, sr, syn, mask, target, target_sr = (tensor(row[name]) for name in names)
    return StoredSample(gt, sr, syn, mask, target, target_sr, rest)
