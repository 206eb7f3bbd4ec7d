"""``finpercep make-dataset`` from the command line."""

import json

import pytest
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.data.dataset import make
from finpercep.data.dataset.config import MakeConfig
from finpercep.data.kinds import usages
from finpercep.data.sources.builtin import BUILTIN
from finpercep.data.sources.kinds import SOURCE_KINDS
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


def test_a_set_without_samples_ends_with_2(tmp_path):
    gt, _ = fgr.inputs(tmp_path / "scenes", 2)
    words = ("--sr", "builtin:smooth", "--crop", 1, "--scale", 1, "--workers", 1)
    result = run("--gt", gt, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"{tmp_path / 'out'}: expected samples, got none: scene")
    assert last.endswith(f"left_out in {tmp_path / 'out' / 'manifest.json'} lists what was left out")


@pytest.fixture
def seen(monkeypatch):
    """The configurations that the command would make a data set with."""
    configs = []

    def stop(*arguments, **_):
        configs.append(arguments[3])
        raise ValueError("seen")

    monkeypatch.setattr(make, "make_dataset", stop)
    return configs


def test_defaults_are_the_librarys(seen, tmp_path):
    run("--out", tmp_path / "o", "--gt", "x", "--sr", "builtin:smooth")
    assert seen == [MakeConfig()]


def test_every_option_arrives(seen, tmp_path):
    words = (
        "--mask boxes --mask blobs --masks 2 --area 0.1 0.2 --feathered 0.5 --features none --alpha 0.5 --normalize "
        "minmax --target-scale 0.1 --restrict --scale 2 --crop 64 --crops 3 --val-share 0.2 --photos-per-shard 3 "
        "--tile 0 --steps 7 --sam-points 8 --skip-bad --seed 9"
    )
    result = run("--out", tmp_path / "o", "--gt", "x", "--sr", "builtin:smooth", *words.split())
    assert result.stderr.splitlines()[-1] == "seen"
    assert seen == [
        MakeConfig(
            seed=9,
            masks=("boxes", "blobs"),
            masks_per_image=2,
            area=(0.1, 0.2),
            feathered=0.5,
            features="none",
            alpha=0.5,
            normalize="minmax",
            target_scale=0.1,
            restrict=True,
            scale=2,
            crop=64,
            crops=3,
            val_share=0.2,
            photos_per_shard=3,
            skip_bad=True,
            tile=0,
            steps=7,
            points_per_side=8,
        )
    ]


@pytest.mark.parametrize("words", [[], ["--verify"]])
def test_verify_arrives(words, monkeypatch, tmp_path):
    seen = []

    def stop(*_, **options):
        seen.append(options["verify"])
        raise ValueError("seen")

    monkeypatch.setattr(make, "make_dataset", stop)
    run("--out", tmp_path / "o", "--gt", "x", "--sr", "builtin:smooth", *words)
    assert seen == [bool(words)]


def test_each_option_has_its_help():
    text = run("--help").output
    for name in ("--mask ", "--sam-points", "--val-share", "--target-scale", "--degradation", "--workers"):
        assert name in text


def test_help_names_the_built_in_sources():
    assert f"faults without weights: {', '.join(BUILTIN)}; all is each of them" in usages(SOURCE_KINDS)
    assert "quilted" in run("--help").output


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
        (["--demo", "--gt", "x"], "--demo: expected neither --gt nor --sr"),
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
        "train": 12,
        "validation": 12,
    }


def test_names_reach_the_terminal_escaped(monkeypatch, tmp_path):
    """Paths and left-out lines hold what file names hold: controls, line breaks, and what rich reads as markup."""
    folder = tmp_path / "a[red]b:star:\x1b[31m\nERROR forged"
    manifest = {"rows": {"train": 1, "validation": 0}, "left_out": ["x\x1b[2J\nERROR forged.png: [bold]too small"]}
    monkeypatch.setattr(make, "make_dataset", lambda *_, **__: make.MadeDataset(folder, manifest, []))
    result = run("--out", tmp_path / "o", "--gt", "x", "--sr", "builtin:smooth")
    assert result.exit_code == 0, result.output
    shown = f"{tmp_path}/a[red]b:star:\\x1b[31m\\nERROR forged"
    assert result.stdout.splitlines() == [
        f"1 train and 0 validation samples in {shown}",
        f"page   {shown}/preview.html",
    ]
    assert result.stderr.splitlines()[-1] == r"left out: x\x1b[2J\nERROR forged.png: [bold]too small"

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "make_dataset", stop)
    stopped = run("--out", "o\x1b[31m\np", "--gt", "x", "--sr", "builtin:smooth")
    assert stopped.exit_code == 130, stopped.output
    assert r"continue in o\x1b[31m\np" in stopped.stderr
