"""Images in a column of Parquet files: the bytes of a file each, or the structs that `datasets` writes for them.

A struct holds the file's `bytes`, or without these its `path`, which counts from the folder of the Parquet file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finpercep.io.image_error import ImageError
from finpercep.io.image_files import opened
from finpercep.io.pil_images import from_pil
from finpercep.io.reasons import one_line

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from torch import Tensor

__all__ = ["PARQUET_SUFFIXES", "Cell", "Row", "find_rows", "read_rows", "require_pyarrow"]

PARQUET_SUFFIXES = frozenset({".parquet"})
NAMES = "id"
"""The column that names the rows, in files that have one."""
BATCH = 8
"""Rows that are read at once."""


class Row(NamedTuple):
    """Where an image lies: `number` counts the file's rows from 0."""

    name: str
    file: Path
    column: str
    number: int


class Cell:
    """The image of a row: read, not decoded; called, it gives uint8 (3,H,W) as `load_image` does.

    Attributes:
        size: width and height by its header; zeros for what cannot be opened, which the call says.
    """

    def __init__(self, name: str, found: PILImage.Image | ImageError) -> None:
        self.name, self.found = name, found
        self.size = (0, 0) if isinstance(found, ImageError) else found.size

    def __call__(self) -> Tensor:
        if isinstance(self.found, ImageError):
            raise self.found
        return from_pil(self.found, self.name)


def require_pyarrow() -> Any:
    """`pyarrow`, or an ImportError that names the extra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"Parquet files need pyarrow ({error}); pip install 'finpercep[data]'") from error
    return pyarrow


def find_rows(file: Path, column: str) -> list[Row]:
    """The rows of a file, named by its column "id"; without one, a row of ``a.parquet`` is ``a.parquet/0``.

    Raises:
        ImageError: no Parquet file, or no such column of images; the message starts with the file.
        ImportError: pyarrow is not installed.
    """
    pa = require_pyarrow()
    try:
        with pa.parquet.ParquetFile(file, memory_map=True) as shard:
            schema = shard.schema_arrow
            if column not in schema.names or not _holds_images(schema.field(column).type):
                found = ", ".join(name for name in schema.names if _holds_images(schema.field(name).type)) or "none"
                raise ImageError(f"{file}: expected a column of images, got {column!r}; such columns: {found}")
            count = shard.metadata.num_rows
            ids = shard.read(columns=[NAMES])[NAMES].to_pylist() if NAMES in schema.names else [None] * count
    except (OSError, pa.ArrowException) as error:
        raise ImageError(f"{file}: expected a Parquet file, got {one_line(error)}") from error
    return [
        Row(f"{file}/{number}" if name in (None, "") else str(name), file, column, number)
        for number, name in enumerate(ids)
    ]


def _holds_images(kind: Any) -> bool:
    types = require_pyarrow().types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def read_rows(rows: Sequence[Row]) -> Iterator[Cell | Path]:
    """What some rows hold, in their order; those of a file follow each other there, too.

    Nothing is raised for what cannot be read: its `Cell` says so when it is called.
    """
    for _, group in groupby(rows, key=lambda row: row.file):
        yield from _images(list(group))


def _images(rows: Sequence[Row]) -> Iterator[Cell | Path]:
    """The images of neighboring rows of one file."""
    done, reason = 0, "fewer rows than before"
    try:
        for content in _contents(rows[0], len(rows)):
            yield _image(rows[done], content)
            done += 1
    except (OSError, require_pyarrow().ArrowException) as error:
        reason = one_line(error)
    for row in rows[done:]:
        yield Cell(row.name, ImageError(f"{row.name}: expected a readable Parquet file, got {reason}"))


def _contents(first: Row, count: int) -> Iterator[Any]:
    """The column's values in `count` rows from `first` on; of other row groups nothing is read."""
    with require_pyarrow().parquet.ParquetFile(first.file, memory_map=True) as shard:
        groups, end, before = [], 0, first.number
        for group in range(shard.num_row_groups):
            start, end = end, end + shard.metadata.row_group(group).num_rows
            if end > first.number and start < first.number + count:
                groups.append(group)
            elif not groups:
                before = first.number - end
        for batch in shard.iter_batches(BATCH, row_groups=groups, columns=[first.column]):
            values = batch.column(0)[before : before + count]
            before = max(before - len(batch), 0)
            count -= len(values)
            for value in values:
                yield value.as_py()


def _image(row: Row, content: Any) -> Cell | Path:
    data, path = (content.get("bytes"), content.get("path")) if isinstance(content, dict) else (content, None)
    if data is None and path:
        return Path(os.path.abspath(row.file.parent / path))
    try:
        if data is None:
            raise ImageError(f"{row.name}: expected an image, got an empty cell")
        return Cell(row.name, opened(row.name, data))
    except ImageError as error:
        return Cell(row.name, error)
