"""The commands that train and measure: options arrive, errors are one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.cli.training import pick_device
from tests.data.conftest import write_scenes

if TYPE_CHECKING:
    from finpercep.models import RewardModel


def test_training_defaults_are_the_configurations() -> None:
    import inspect

    from finpercep.cli.training import train_reward
    from finpercep.data.triplets import TripletConfig
    from finpercep.training.losses import LossWeights
    from finpercep.training.trainer import RewardTrainConfig

    given = {name: p.default for name, p in inspect.signature(train_reward).parameters.items()}
    config = RewardTrainConfig(data="d", out="o")
    for name in (
        "anchor",
        "steps",
        "batch",
        "lr_encoder",
        "lr_new",
        "warmup",
        "dev_every",
        "seed",
        "workers",
    ):
        assert given[name] == getattr(config, name), name
    assert {"width": given["width"], "norm": True} == config.decoder
    assert given["crop"] == TripletConfig().crop
    assert given["margin"] == LossWeights().margin_sr == LossWeights().margin_syn


def test_train_reward_passes_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import finpercep.training.trainer as reward

    seen: list[reward.RewardTrainConfig] = []
    monkeypatch.setattr(reward, "train", seen.append)
    options = {
        **{
            "--out": "o",
            "--anchor": "a",
            "--steps": "7",
            "--batch": "3",
            "--crop": "64",
            "--lr-encoder": "0.5",
        },
        **{"--lr-new": "0.25", "--width": "40", "--gate": "quality", "--margin": "0.2", "--dev-every": "5"},
        **{"--seed": "9", "--workers": "0", "--leave-out": "srgan", "--warmup": "30"},
    }
    words = [word for pair in options.items() for word in pair]
    result = CliRunner().invoke(app, ["train-reward", "d", *words, "--leave-out", "rlfn"])
    assert result.exit_code == 0, result.output
    config = seen[0]
    assert (config.data, config.out, config.anchor, config.steps, config.batch) == ("d", "o", "a", 7, 3)
    assert (config.lr_encoder, config.lr_new, config.seed, config.workers, config.dev_every) == (
        0.5,
        0.25,
        9,
        0,
        5,
    )
    assert config.warmup == 30
    assert config.decoder == {"width": 40, "norm": True}
    assert config.head == {"gate": "quality"}
    assert config.leave_out == ["srgan", "rlfn"]
    assert config.triplets.crop == 64
    assert (config.loss.margin_sr, config.loss.margin_syn) == (0.2, 0.2)


@pytest.mark.parametrize(("command", "status"), [("train-reward", 2), ("evaluate-reward", 1)])
def test_missing_data_is_one_line(command: str, status: int, tmp_path: Path, model_folder: Path) -> None:
    extra = ["--out", str(tmp_path / "out")] if command == "train-reward" else ["--model", str(model_folder)]
    result = CliRunner().invoke(app, [command, str(tmp_path / "none"), *extra])
    assert result.exit_code == status
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(str(tmp_path / "none" / "index.jsonl"))


def test_training_on_no_such_device_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", str(tmp_path / "o"), "--device", "gpu7"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "gpu7" in result.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--anchor a --init i --width light",
            "--width: expected without --init, whose model keeps its own, got both",
        ),
        ("--init i --gate quality", "--gate: expected without --init, whose model keeps its own, got both"),
        ("--width full", "--width: expected with --anchor: RM_0 has no decoder, got no --anchor"),
    ],
)
def test_options_that_would_be_ignored_are_refused(words: str, message: str, tmp_path: Path) -> None:
    out = tmp_path / "o"
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", str(out), *words.split()])
    assert (result.exit_code, result.stderr) == (2, message + "\n")
    assert not out.exists()


@pytest.mark.parametrize("option", ["--anchor", "--init"])
def test_a_run_does_not_overwrite_what_it_starts_from(option: str, tmp_path: Path, model_folder: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "r0")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = CliRunner().invoke(app, ["train-reward", "d", option, str(folder), "--out", f"{folder}/"])
    assert result.exit_code == 2
    expected = f"out: expected another folder than that of {option[2:]}, got {folder} for both\n"
    assert result.stderr == expected
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_error_of_a_worker_is_its_last_line(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", 1)
    words = [
        "train-reward",
        str(data),
        "--out",
        str(tmp_path / "r0"),
        "--crop",
        "1000",
        "--steps",
        "1",
        "--batch",
        "1",
    ]
    result = CliRunner().invoke(app, [*words, "--device", "cpu", "--workers", "1"])
    assert result.exit_code == 2
    expected = f"{data / 'train' / 'scene0' / 'gt.png'}: 72x64 is smaller than the crop of 1000"
    assert result.stderr.splitlines()[-1] == expected


def test_interrupted_training_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    import finpercep.training.trainer as reward

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reward, "train", stop)
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", "somewhere"])
    assert result.exit_code == 130
    assert result.stderr == "interrupted; the same command goes on from what was last saved in somewhere\n"


def test_evaluate_reward_passes_every_option_on(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, small_model: RewardModel
) -> None:
    import finpercep.evaluation.report as report

    seen: list[tuple[object, dict[str, Any]]] = []
    monkeypatch.setattr(report, "run", lambda data, **options: seen.append((data, options)))
    words = (
        "--split train --shift jpeg75 --shift none --metric niqe --metric musiq --without srgan --seed 4 "
        "--json f.json --device cpu --model"
    )
    for options in ([*words.split(), str(model_folder)], ["--baselines-only"], ["--metric", "none"]):
        assert CliRunner().invoke(app, ["evaluate-reward", "d", *options]).exit_code == 0
    assert seen[0][1].pop("model").fingerprint == small_model.fingerprint
    assert seen[0] == (
        Path("d"),
        {
            **{"name": str(model_folder), "split": "train", "shifts": ["jpeg75", "none"]},
            **{"metrics": ["niqe", "musiq"], "without": ["srgan"], "seed": 4, "json_file": Path("f.json")},
            "device": "cpu",
        },
    )
    assert seen[1][1] == {
        **{"model": None, "name": None, "split": "val", "shifts": ["none"], "metrics": None},
        **{"without": [], "seed": 0, "json_file": None, "device": pick_device("auto")},
    }
    assert seen[2][1]["name"] == "finpercep-tiny"
    assert seen[2][1]["metrics"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--model finpercep-tinny",
            "finpercep-tinny: no such model or folder; did you mean 'finpercep-tiny'?",
        ),
        ("--device gpu7", "gpu7"),
        ("--device gpu7 --baselines-only", "gpu7"),
    ],
)
def test_evaluation_without_its_model_or_device_ends_with_2(words: str, message: str) -> None:
    result = CliRunner().invoke(app, ["evaluate-reward", "d", *words.split()])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
