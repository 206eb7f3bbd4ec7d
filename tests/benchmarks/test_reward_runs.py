"""Families left out and ablations, end to end on a handful of steps: what is trained on, measured, kept and resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import reward_ablations, reward_families, reward_runs
from benchmarks.reward_families import FAMILIES, members
from finpercep.runs.progress import Screen
from tests.data.conftest import write_scenes

SHORT = "--base-steps 1 --steps 1 --batch 1 --crop 32 --seeds 0"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two sets of two families, with train and val."""
    monkeypatch.setattr(Screen, "log", lambda *_: None)
    for name, sources in (("one", ("imdn", "osediff")), ("two", ("imdn", "rlfn"))):
        for split, count in (("train", 5), ("val", 2)):
            write_scenes(tmp_path / name, count, split=split, sources=sources)
    return [str(tmp_path / "one"), str(tmp_path / "two")]


@pytest.fixture
def trained_on(monkeypatch):
    """The settings of every training that is asked for."""
    asked, train = [], reward_runs.train

    def noted(config, monitors):
        asked.append(config)
        return train(config, monitors)

    monkeypatch.setattr(reward_runs, "train", noted)
    return asked


def words(data, tmp_path: Path, *more: str) -> list[str]:
    return [*data, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), *SHORT.split(), *more]


def test_every_source_is_of_one_family():
    known = [
        "upscayl-lite",
        "animevideov3",
        "imdn",
        "rlfn",
        "srgan",
        "realesrgan-x4plus",
        "realsr-df2k-jpeg",
        "span-clearreality",
        "span-ch52",
        "span-nomos-otf-weak",
        "span-nomos-otf-medium",
        "realesr-general-v3",
        "realesr-general-wdn-v3",
        "lsdir-compact-c3",
        "realesrgan-x4plus-anime",
        "srgan-goldhuang",
        "esrgan-medium",
        "craft",
        "vae-photo",
        "vae-clearreality",
        "osediff",
    ]
    found = [name for family in FAMILIES for name in members(family, known)]
    assert sorted(found) == sorted(known)
    assert members("gan", known) == [
        "srgan",
        "realesrgan-x4plus",
        "realsr-df2k-jpeg",
        "realesrgan-x4plus-anime",
        "srgan-goldhuang",
        "esrgan-medium",
    ]


def names(configs):
    """Of the runs' folders, without the digits of their settings."""
    return [re.sub(r"-[0-9a-f]{6}(?=-|$)", "", Path(config.out).name) for config in configs]


def test_families(data, trained_on, tmp_path, capsys):
    wanted = words(data, tmp_path, "--families", "psnr", "vae")  # no vae here
    reward_families.main(wanted)
    assert names(trained_on) == ["none-0-rm0", "none-0", "psnr-0-rm0", "psnr-0"]
    assert [config.leave_out for config in trained_on] == [[], [], ["imdn", "rlfn"], ["imdn", "rlfn"]]
    assert [config.anchor for config in trained_on[1::2]] == [config.out for config in trained_on[::2]]
    found = json.loads((tmp_path / "results" / "reward_families.json").read_text())
    assert sorted(found) == ["none", "psnr"]
    for name in found:
        assert found[name][0]["psnr"]["pairs"] == 2 * 1 + 2 * 2  # imdn of one; imdn and rlfn of two
        assert len(found[name][0]["psnr"]["intervals"]["auc"]) == 2
    lines = (tmp_path / "results" / "reward_families.md").read_text().splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:]] == [["| psnr", "6", "1"]]
    assert lines[0] in capsys.readouterr().out
    reward_families.main(wanted)  # all is there
    assert len(trained_on) == 4


def test_ablations(data, trained_on, tmp_path):
    wanted = ["full", "losses rank", "alpha 1", "climbed 1", "without two"]
    given = words(data, tmp_path, "--variants", *wanted)
    reward_ablations.main(given)
    full = [config for config in trained_on if config.anchor]
    assert names(full) == ["full-0", "losses-rank-0", "alpha-1-0", "climbed-1-0", "without-two-0"]
    assert [Path(c.anchor).name[:11] for c in full] == ["full-0-" + Path(full[0].out).name[-6:-2]] * 4 + ["without-two"]
    assert all(config.dev_every == 5 for config in trained_on)
    assert full[4].data == (data[0],)
    assert (full[1].loss.map, full[1].loss.rank) == (0.0, 0.8)
    assert (full[2].triplets.target_alpha, full[0].triplets.target_alpha, full[2].triplets.crop) == (1.0, 0.25, 32)
    assert full[3].climb.climbed == 1.0
    found = json.loads((tmp_path / "results" / "reward_ablations.json").read_text())
    assert sorted(found) == sorted(wanted)
    assert {run["dev"]["pairs"] for runs in found.values() for run in runs} == {4}  # one scene of each set
    assert found["full"][0]["dev"]["climb"]["climbs"] == 3  # imdn, osediff, rlfn
    table = (tmp_path / "results" / "reward_ablations.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in wanted]
    reward_ablations.main([*words(data, tmp_path, "--climb", "0", "--variants", "full"), "--steps", "2"])
    assert names(trained_on[-2:]) == ["full-0-rm0", "full-0"]  # of other settings: made anew, beside the first
    assert Path(trained_on[-1].out) != Path(full[0].out)


def test_what_is_not_there_is_said(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        reward_families.main(words(data, tmp_path, "--families", "vae"))
    assert "data: expected sources of vae in train and val, got imdn, osediff, rlfn" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        reward_ablations.main(words(data, tmp_path, "--variants", "without three"))
    assert "without one, without two, got without three" in capsys.readouterr().err


def test_spread_over_seeds():
    assert reward_runs.cell([0.5, 0.7]) == "0.600 ± 0.141"
    assert reward_runs.cell([0.5]) == "0.500"
    assert reward_runs.cell([None]) == ""
