"""Each program of examples/ runs as it stands, and does what it says."""

from __future__ import annotations

import re
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from finpercep import RewardModel
from finpercep.data import load_scenes
from finpercep.rl import load_generator

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for everything that a program writes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["example"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(name: str) -> dict[str, Any]:
    """The names that a program defines, without running it."""
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="example")


def as_it_stands(name: str) -> None:
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def test_every_program_is_tested() -> None:
    tested = set(re.findall(r'(?:program|as_it_stands)\("(\w+)"\)', Path(__file__).read_text()))
    assert {path.stem for path in FOLDER.glob("*.py")} == tested


def test_score_folder_lists_the_worst_first(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_it_stands("score_folder")
    *rows, last = capsys.readouterr().out.splitlines()
    scores = [float(row.split()[0]) for row in rows]
    assert len(rows) == 4
    assert scores == sorted(scores)
    assert rows[-1].endswith("photo.png")
    assert len(list(Path(last.removeprefix("maps: ")).glob("*.map.png"))) == 4


def test_refl_step_raises_the_reward() -> None:
    history = program("refl_step")["main"](4)
    assert history[-1]["reward"] > history[0]["reward"] + 0.02
    assert history[-1]["pretraining"] < 2 * history[0]["pretraining"]


def test_flow_grpo_step_starts_with_ratios_of_one() -> None:
    first, second = program("flow_grpo_step")["main"](2)
    assert first.ratio_min == first.ratio_max == 1
    assert first.kl_loss == 0
    assert second.ratio_min < 1 < second.ratio_max
    assert second.kl_loss > 0


def test_own_sr_source_makes_samples_of_it(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_it_stands("own_sr_source")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("6 samples in ")
    assert 0.01 < float(second.rpartition(" ")[2]) < 1
    folder = first.removeprefix("6 samples in ").partition(";")[0]
    scenes = load_scenes(folder, "train")
    assert {source for scene in scenes for source in scene.sources} == {"mine"}


def test_photos_to_model_leaves_a_model_with_a_map(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_it_stands("photos_to_model")
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(r"model: (.+), fingerprint (\w{16})", line)
    assert found
    model = RewardModel.from_pretrained(found[1])
    assert model.fingerprint == found[2]
    assert model.config["decoder"] is not None


def test_own_generator_raises_the_reward_and_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    history = program("own_generator")["main"](8)
    assert history[-1] > history[0] + 0.02
    monkeypatch.syspath_prepend(str(FOLDER))
    assert load_generator("own_generator:Sharpener").scale == 4
