"""The commands that train and measure: options arrive, errors are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from finpercep.cli import app


def test_training_defaults_are_the_configurations() -> None:
    import inspect

    from finpercep.cli_training import train_reward
    from finpercep.data.triplets import TripletConfig
    from finpercep.training.losses import LossWeights
    from finpercep.training.reward import RewardTrainConfig

    given = {name: p.default for name, p in inspect.signature(train_reward).parameters.items()}
    config = RewardTrainConfig(data="d", out="o")
    for name in ("anchor", "steps", "batch", "lr_encoder", "lr_new", "dev_every", "seed", "workers"):
        assert given[name] == getattr(config, name), name
    assert {"width": given["width"], "norm": True} == config.decoder
    assert given["crop"] == TripletConfig().crop
    assert given["margin"] == LossWeights().margin_sr == LossWeights().margin_syn


def test_train_reward_passes_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import finpercep.training.reward as reward

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
        **{"--seed": "9", "--workers": "0", "--leave-out": "srgan"},
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


def test_interrupted_training_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    import finpercep.training.reward as reward

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reward, "train", stop)
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", "somewhere"])
    assert result.exit_code == 130
    assert result.stderr == "interrupted; the same command goes on from what was last saved in somewhere\n"


def test_evaluate_reward_passes_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import finpercep.training.report as report

    seen: list[tuple[object, dict[str, object]]] = []
    monkeypatch.setattr(report, "run", lambda data, **options: seen.append((data, options)))
    words = (
        "--split train --shift jpeg75 --shift none --no-piqe --without srgan --seed 4 --json f.json --model m"
    )
    assert CliRunner().invoke(app, ["evaluate-reward", "d", *words.split()]).exit_code == 0
    assert CliRunner().invoke(app, ["evaluate-reward", "d", "--baselines-only"]).exit_code == 0
    assert seen[0] == (
        Path("d"),
        {
            **{"model": "m", "split": "train", "shifts": ["jpeg75", "none"], "piqe": False},
            **{"without": ["srgan"], "seed": 4, "json_file": Path("f.json")},
        },
    )
    assert seen[1][1] == {
        **{"model": None, "split": "val", "shifts": ["none"], "piqe": None},
        **{"without": [], "seed": 0, "json_file": None},
    }
