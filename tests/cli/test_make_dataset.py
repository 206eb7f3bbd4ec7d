"""``finpercep make-dataset`` from the command line."""

import inspect
import json
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.cli.make_dataset import make_dataset
from finpercep.data.dataset.config import MakeConfig
from tests.data import fgr

pytest.importorskip("pyarrow", reason="needs pyarrow")
runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, ["make-dataset", *map(str, arguments)])


def test_from_folders_to_a_page(tmp_path):
    gt, sr = fgr.inputs(tmp_path / "scenes", 3)
    out = tmp_path / "out"
    options = tmp_path / "degradation.yml"
    options.write_text("blur_sigma: [0.2, 1.0]\n")
    sources = [word for source in sr for word in ("--sr", source)]
    result = run("--gt", gt, *sources, "--out", out, "--masks", 1, "--workers", 1, "--degradation", options)
    assert result.exit_code == 0, result.output
    assert "6 train and 3 validation samples" in result.output
    assert "per second and worker" in result.output
    page = (out / "preview.html").read_text()
    assert "9 samples of 3 photos" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing from outside
    assert json.loads((out / "settings.json").read_text())["config"]["degradation"]["blur_sigma"] == [
        0.2,
        1.0,
    ]
    again = run("--gt", gt, *sources, "--out", out, "--masks", 1, "--workers", 1, "--degradation", options)
    assert again.exit_code == 0
    other = run("--gt", gt, *sources, "--out", out, "--masks", 2, "--workers", 1)
    assert other.exit_code == 2
    assert "config.masks_per_image: was 1, now 2" in other.output


def test_defaults_are_the_librarys():
    options = inspect.signature(make_dataset).parameters
    renamed = {"masks": "mask", "masks_per_image": "masks", "points_per_side": "sam_points"}
    for field in fields(MakeConfig):
        option = options.get(renamed.get(field.name, field.name))
        if option is not None and option.default is not None:  # None: the library's
            assert option.default == field.default, field.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --gt and at least one --sr, or --demo"),
        (["--gt", "nowhere", "--sr", "builtin:smooth"], "nowhere: expected a folder or pattern with images"),
        (["--gt", "x", "--sr", "magic:y"], "sr: expected folder:NAME=DIR"),
        (
            ["--gt", "x", "--sr", "builtin:smooth", "--engine", "spark"],
            "engine: expected one of local, ray, got",
        ),
        (["--demo", "--gt", "x"], "demo: expected neither --gt nor --sr"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, message, tmp_path):
    result = run("--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_demo_is_made_of_scikit_images_photos(tmp_path, monkeypatch):
    pytest.importorskip("skimage", reason="needs scikit-image")
    from finpercep.data import demo_photos

    monkeypatch.setattr(demo_photos, "SIDE", 64)
    monkeypatch.setattr(demo_photos, "PHOTOS", {"astronaut": None, "chelsea": None})
    result = run("--demo", "--out", tmp_path / "demo", "--workers", 1, "--masks", 1)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "demo" / "manifest.json").read_text())["rows"] == {
        "train": 8,
        "validation": 8,
    }
