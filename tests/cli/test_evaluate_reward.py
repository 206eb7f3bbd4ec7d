"""``finpercep evaluate-reward``: options arrive, errors are one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from finpercep.cli.common import pick_device
from finpercep.cli.main import app

if TYPE_CHECKING:
    from finpercep.models import RewardModel


def test_missing_data_is_one_line(tmp_path: Path, model_folder: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate-reward", str(tmp_path / "none"), "--model", str(model_folder)])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(str(tmp_path / "none" / "index.jsonl"))


def test_evaluate_reward_passes_every_option_on(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, small_model: RewardModel
) -> None:
    import finpercep.evaluation.report as report

    seen: list[tuple[object, dict[str, Any]]] = []
    monkeypatch.setattr(report, "run", lambda data, **options: seen.append((data, options)))
    words = (
        "--split train --shift jpeg75 --shift none --metric niqe --metric musiq --without srgan --seed 4 "
        "--intervals --climb 2 --json f.json --page p.html --device cpu --model"
    )
    for options in ([*words.split(), str(model_folder)], ["--baselines-only"], ["--metric", "none"]):
        assert CliRunner().invoke(app, ["evaluate-reward", "d", *options]).exit_code == 0
    assert seen[0][1].pop("model").fingerprint == small_model.fingerprint
    assert seen[0] == (
        Path("d"),
        {
            **{"name": str(model_folder), "split": "train", "shifts": ["jpeg75", "none"]},
            **{"metrics": ["niqe", "musiq"], "without": ["srgan"], "seed": 4, "json_file": Path("f.json")},
            **{"device": "cpu", "intervals": True, "climb": 2, "page": Path("p.html")},
        },
    )
    assert seen[1][1] == {
        **{"model": None, "name": None, "split": "val", "shifts": ["none"], "metrics": None},
        **{"without": [], "seed": 0, "json_file": None, "device": pick_device("auto")},
        **{"intervals": False, "climb": 0, "page": None},
    }
    assert seen[2][1]["name"] == "finpercep-small"
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
        ("--model finpercep-tiny --model a", "--model: expected one, got finpercep-tiny, a"),
        ("--baselines-only --model finpercep-tiny", "--model: expected only without --baselines-only"),
        ("--baselines-only --climb 2", "--climb: expected only without --baselines-only"),
    ],
)
def test_evaluation_without_its_model_or_device_ends_with_2(words: str, message: str) -> None:
    result = CliRunner().invoke(app, ["evaluate-reward", "d", *words.split()])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
