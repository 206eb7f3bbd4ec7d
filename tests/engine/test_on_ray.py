"""`finpercep score --engine ray`: the results of one process, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from typer.testing import CliRunner

from finpercep import RewardModel, Scorer
from finpercep.cli.main import app
from finpercep.engine import on_ray
from finpercep.engine.files import FileScore, score_files
from finpercep.engine.on_ray import CHUNK, score_files_on_ray
from finpercep.io.parquet import find_rows
from finpercep.io.pictures import as_picture, save_image

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
pytest.importorskip("ray.data", reason="Ray Data is not installed (extra ray)")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture
def files(make_photo: Callable[..., Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """More than two chunks of mixed sizes, by relative names, one of them damaged and one not there."""
    monkeypatch.chdir(tmp_path)
    for i in range(2 * CHUNK + 3):
        save_image(as_picture(make_photo(24 + 8 * (i % 3), 40, i)), Path(f"photos/{i:02}.png"))
    broken = Path("photos/05.png")
    broken.write_bytes(broken.read_bytes()[:200])
    return [*sorted(Path("photos").iterdir()), Path("gone.png")]


def test_results_and_maps_are_those_of_one_process(
    files: list[Path], model_folder: Path, small_model: RewardModel
) -> None:
    expected = list(score_files(Scorer(small_model, deterministic=True), files, maps="maps"))
    found = list(score_files_on_ray(str(model_folder), files, maps="ray-maps", workers=2))
    assert found == expected
    assert [result.path.name for result in found if result.error] == ["05.png", "gone.png"]
    names = sorted(path.name for path in Path("maps").iterdir())
    assert len(names) == len(files) - 2
    assert names == sorted(path.name for path in Path("ray-maps").iterdir())
    assert all(Path("maps", name).read_bytes() == Path("ray-maps", name).read_bytes() for name in names)


def test_rows_and_their_maps_are_those_of_one_process(
    files: list[Path], model_folder: Path, small_model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than two chunks from two files by relative names, one cell damaged, one empty, one a path to nothing."""
    parquet = write_rows(files[:-1])
    rows = [row for file in parquet for row in find_rows(file, "sr")]
    monkeypatch.setattr(on_ray, "CHUNK_ROWS", 8)
    expected = list(score_files(Scorer(small_model, deterministic=True), rows, maps="maps"))
    found = list(score_files_on_ray(str(model_folder), rows, maps="ray-maps", workers=2))
    assert found == expected
    assert [str(result.path) for result in found if result.error] == ["05.png", "set/a.parquet/10", "set/b.parquet/9"]
    names = sorted(path.name for path in Path("maps").iterdir())
    assert len(names) == len(rows) - 3
    assert names == sorted(path.name for path in Path("ray-maps").iterdir())
    assert all(Path("maps", name).read_bytes() == Path("ray-maps", name).read_bytes() for name in names)


def write_rows(files: list[Path]) -> list[Path]:
    """Two files of a Parquet set: the first ten files, by name, and an empty cell; the others and a path to nothing."""
    import pyarrow as pa
    import pyarrow.parquet

    Path("set").mkdir()
    halves = [files[:10], files[10:]]
    for name, half, last in zip("ab", halves, (None, {"bytes": None, "path": "gone.png"}), strict=True):
        cells = [{"bytes": path.read_bytes(), "path": None} for path in half]
        ids = [path.name for path in half]
        table = pa.table({"id": [*ids, None], "sr": [*cells, last]})
        pyarrow.parquet.write_table(table, f"set/{name}.parquet", row_group_size=6)
    return sorted(Path("set").iterdir())


def test_the_command_hands_over_what_it_is_given(
    files: list[Path], model_folder: Path, small_model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And prints the same bytes, whoever scores; the cluster itself is that of the test above."""
    asked: list[Any] = []

    def in_place_of_ray(model: str, paths: list[Path], **given: Any) -> Iterator[FileScore]:
        asked.append((model, given))
        return score_files(Scorer(RewardModel.from_pretrained(model), deterministic=True), paths, maps=given["maps"])

    monkeypatch.setattr(on_ray, "score_files_on_ray", in_place_of_ray)
    common = ["score", "photos", "gone.png", "--json", "--model", str(model_folder), "--device", "cpu"]
    local = CliRunner().invoke(app, [*common, "--deterministic"])
    elsewhere = CliRunner().invoke(app, [*common, "--engine", "ray", "--workers", "2", "--maps", "maps"])
    assert asked == [(str(model_folder), {"maps": Path("maps"), "device": "cpu", "workers": 2})]
    assert (local.exit_code, elsewhere.exit_code) == (1, 1)
    assert elsewhere.stdout_bytes == local.stdout_bytes
    assert elsewhere.stderr == local.stderr
    assert len(local.stdout.splitlines()) == len(files)
    wrong = CliRunner().invoke(app, [*common, "--engine", "spark"])
    assert wrong.exit_code == 2


def test_nothing_gives_nothing(model_folder: Path) -> None:
    assert list(score_files_on_ray(str(model_folder), [])) == []
