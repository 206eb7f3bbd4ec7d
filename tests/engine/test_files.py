"""Scoring files: what a model that is broken says of each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finpercep import RewardOutput, Scorer
from finpercep.engine.files import score_files
from finpercep.io.parquet import find_rows
from finpercep.io.pictures import as_picture, save_image
from finpercep.models import RewardModel


@pytest.mark.parametrize("part", ["head.mlp.4.bias", "decoder.conv2.bias"])
def test_a_model_that_gives_nan_is_an_error_of_each_file(
    part: str, small_model: RewardModel, photo: torch.Tensor, tmp_path: Path
) -> None:
    broken = copy.deepcopy(small_model)
    parameters = dict(broken.named_parameters())
    parameters[part].data.fill_(float("nan"))
    paths = [save_image(as_picture(photo), tmp_path / f"{i}.png") for i in range(2)]
    results = list(score_files(broken, paths, maps=tmp_path / "maps"))
    assert [r.path for r in results] == paths
    assert all(r.error is not None and "expected a finite score and map, got score nan" in r.error for r in results)
    assert not (tmp_path / "maps").exists()


def test_a_reward_that_refuses_an_image_is_an_error_of_that_file(photo: torch.Tensor, tmp_path: Path) -> None:
    class AtLeast:
        fingerprint = "at-least-1"

        def __call__(self, images: torch.Tensor) -> RewardOutput:
            if images.shape[-1] < 40:
                raise ValueError("images: expected sides of 40,\ngot less")
            return RewardOutput(images.mean((1, 2, 3)), None)

    images = [photo, photo[:, :16, :16], photo]
    paths = [save_image(as_picture(one), tmp_path / f"{i}.png") for i, one in enumerate(images)]
    first, refused, last = score_files(Scorer(AtLeast()), paths)
    assert refused.path == paths[1]
    assert refused.error == "images: expected sides of 40, got less"
    assert first.error is None
    assert first.score == last.score > 0


def test_rows_of_a_parquet_file_score_as_their_files_do(
    small_model: RewardModel, make_photo: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra data)")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra data)")
    photos = [make_photo(24 + 8 * (i % 3), 40, i) for i in range(7)]
    paths = [save_image(as_picture(photo), tmp_path / f"{i}.png") for i, photo in enumerate(photos)]
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    cells = [path.read_bytes() for path in paths]
    names = [f".//scene|v1.{path.stem}" for path in paths]
    parquet.write_table(pa.table({"id": names, "image": cells}), tmp_path / "a.parquet")
    scorer = Scorer(small_model, deterministic=True)
    expected = list(score_files(scorer, paths, maps=tmp_path / "maps"))
    found = list(score_files(scorer, find_rows(tmp_path / "a.parquet", "image"), maps=tmp_path / "row-maps"))
    assert found == [one._replace(path=name) for one, name in zip(expected, names, strict=True)]
    assert [number for number, one in enumerate(found) if one.error] == [3]
    overlays = {path.name: path.read_bytes() for path in (tmp_path / "row-maps").iterdir()}
    assert overlays == {f"scene|v1.{path.name}": path.read_bytes() for path in (tmp_path / "maps").iterdir()}
