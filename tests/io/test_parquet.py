"""Images in columns of Parquet files: where they are found, what is read, and what each bad one says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finpercep.io.images import ImageError, load_image
from finpercep.io.parquet import Cell, Row, find_rows, read_rows

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra data)")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra data)")


def png(number: int) -> bytes:
    """A PNG of 4 × 5 pixels that all are `number`."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: int, group: int = 10**6, **more: Any) -> Path:
    """A file with a column `image` of bytes, in row groups of `group`."""
    pq.write_table(pa.table({"image": [png(i) for i in range(rows)], **more}), path, row_group_size=group)
    return path


def images(rows: list[Row]) -> list[Tensor]:
    return [cell() if isinstance(cell, Cell) else load_image(cell) for cell in read_rows(rows)]


@pytest.mark.parametrize("group", [1, 7, 16, 10**6])
def test_any_part_of_a_file_is_read_in_order(tmp_path: Path, group: int) -> None:
    rows = find_rows(write(tmp_path / "a.parquet", 40, group), "image")
    for start, stop in ((0, 40), (3, 4), (8, 16), (13, 39), (39, 40)):
        found = images(rows[start:stop])
        assert [int(image.unique()) for image in found] == list(range(start, stop))
    first = next(read_rows(rows))
    assert isinstance(first, Cell)
    assert (first.size, first().shape, first().dtype) == ((5, 4), (3, 4, 5), torch.uint8)


def test_rows_have_the_names_of_their_ids(tmp_path: Path) -> None:
    ids = ["photo|0,0|x4|1", None, "", "https://host/a.png", "./x", "dir//y", "0001/"]
    named = write(tmp_path / "a.parquet", 7, id=ids)
    plain = write(tmp_path / "b.parquet", 2)
    assert [row.name for row in find_rows(named, "image")] == [ids[0], f"{named}/1", f"{named}/2", *ids[3:]]
    assert [row.name for row in find_rows(plain, "image")] == [f"{plain}/0", f"{plain}/1"]


def test_structs_of_bytes_or_a_path_as_datasets_writes_them(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png(9))
    cells = [
        {"bytes": png(7), "path": "elsewhere.png"},
        {"bytes": None, "path": "photo.png"},
        {"bytes": None, "path": str(tmp_path / "photo.png")},
    ]
    pq.write_table(pa.table({"sr": cells}), tmp_path / "a.parquet")
    assert [int(image.unique()) for image in images(find_rows(tmp_path / "a.parquet", "sr"))] == [7, 9, 9]


def test_what_datasets_itself_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra data)")
    features = datasets.Features({"image": datasets.Image()})
    pictures = [Image.open(io.BytesIO(png(i))) for i in range(3)]
    datasets.Dataset.from_dict({"image": pictures}, features=features).to_parquet(tmp_path / "a.parquet")
    assert [int(image.unique()) for image in images(find_rows(tmp_path / "a.parquet", "image"))] == [0, 1, 2]


def test_a_bad_cell_says_so_and_the_others_are_read(tmp_path: Path) -> None:
    cells = [png(1), None, b"rubbish", png(4)[:-30], png(5)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    rows = find_rows(tmp_path / "a.parquet", "image")
    found: list[Tensor | str] = []
    for cell in read_rows(rows):
        assert isinstance(cell, Cell)
        try:
            found.append(cell())
        except ImageError as error:
            found.append(str(error))
    assert [int(one.unique()) for one in found if isinstance(one, Tensor)] == [1, 5]
    start = f"{tmp_path / 'a.parquet'}/"
    assert found[1] == f"{start}1: expected an image, got an empty cell"
    assert found[2] == f"{start}2: expected an image file, got content of no known image format"
    assert str(found[3]).startswith(f"{start}3: expected a readable image, got ")


def test_rows_that_are_gone_say_so(tmp_path: Path) -> None:
    rows = find_rows(write(tmp_path / "a.parquet", 12), "image")
    write(tmp_path / "a.parquet", 10)
    *there, last = read_rows(rows[8:])
    assert [int(cell().unique()) for cell in there[:2] if isinstance(cell, Cell)] == [8, 9]
    assert isinstance(last, Cell)
    with pytest.raises(ImageError, match=r"a\.parquet/11: expected a readable Parquet file, got fewer rows than"):
        last()
    (tmp_path / "a.parquet").write_bytes(b"PAR1 rubbish PAR1")
    (cell,) = read_rows(rows[:1])
    assert isinstance(cell, Cell)
    with pytest.raises(ImageError, match=r"a\.parquet/0: expected a readable Parquet file, got \S"):
        cell()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("sr", "expected a column of images, got 'sr'; such columns: image"),
        ("label", "expected a column of images, got 'label'; such columns: image"),
    ],
)
def test_another_column_is_refused_with_those_that_would_do(tmp_path: Path, column: str, message: str) -> None:
    path = write(tmp_path / "a.parquet", 2, label=[1, 2])
    with pytest.raises(ImageError) as error:
        find_rows(path, column)
    assert str(error.value) == f"{path}: {message}"


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(png(0))
    for name in ("a.parquet", "gone.parquet"):
        with pytest.raises(ImageError, match=f"{name}: expected a Parquet file, got "):
            find_rows(tmp_path / name, "image")
