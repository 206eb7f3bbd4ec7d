"""``finpercep train-rl``: options arrive, a run goes end to end, errors are one line."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.rewards.remote import ServiceError
from finpercep.rl import loop
from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.nft import NFTConfig
from finpercep.rl.screen import RLScreen
from finpercep.runs.trackers import TensorBoard, WeightsAndBiases
from tests.rl.conftest import photo_set  # noqa: F401


@pytest.fixture
def seen(monkeypatch):
    """The configurations that the command would train with, and its monitors."""
    calls = []
    monkeypatch.setattr(loop, "train", lambda config, monitors: calls.append((config, list(map(type, monitors)))))
    return calls


def invoke(*words):
    return CliRunner().invoke(app, ["train-rl", *map(str, words)])


def test_defaults_are_the_configuration(seen, tmp_path):
    result = invoke("d", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert seen == [(RLConfig(("d",), str(tmp_path)), [RLScreen, TensorBoard])]
    assert result.stdout == f"{tmp_path / 'report.html'}; the generator is in {tmp_path / 'generator'}\n"


def test_figures_go_to_wandb_where_a_project_is_named(seen, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    result = invoke("d", "--out", tmp_path, "--wandb", "sr")
    assert result.exit_code == 0, result.output
    assert seen[0][1] == [RLScreen, TensorBoard, WeightsAndBiases]


def test_every_option_arrives(seen, tmp_path):
    (tmp_path / "run.yaml").write_text("batch: 2\nalgorithm: nft\n")
    result = invoke(
        "a", "b", "--out", tmp_path, "-c", tmp_path / "run.yaml", "--set", "stages.0.lr=1e-3", "--set=side=48"
    )
    assert result.exit_code == 0, result.output
    stages = (StageConfig(lr=1e-3),)
    expected = RLConfig(("a", "b"), str(tmp_path), algorithm=NFTConfig(), stages=stages, batch=2, side=48)
    assert seen[0][0] == expected


def test_print_config_can_be_fed_back(seen, tmp_path):
    first = invoke("a", "--algorithm", "grpo", "--set", "algorithm.beta=0.1", "--print-config")
    assert first.exit_code == 0
    (tmp_path / "run.yaml").write_text(first.stdout)
    assert invoke("-c", tmp_path / "run.yaml", "--print-config").stdout == first.stdout
    assert "name: grpo" in first.stdout
    assert seen == []


def test_a_run(photo_set, tmp_path):  # noqa: F811
    """Two steps of the embedded generator against the embedded reward."""
    words = ["--set", "stages.0.steps=2", "--set", "batch=1", "--set", "side=32", "--set", "eval_photos=2"]
    words += [photo_set, "--out", tmp_path / "run", "--threads", 1]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert "images/s rollout" in result.stderr
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 1, 2]
    again = invoke(*words)
    assert "resumed at step 2" in again.stderr


def test_the_device_is_checked_wherever_it_was_set(seen, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert invoke("d", "--out", tmp_path, "--set", "device=auto").exit_code == 0
    assert seen[0][0].device == "cpu"
    (tmp_path / "run.yaml").write_text("device: nowhere\n")
    result = invoke("d", "-c", tmp_path / "run.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("--device: expected a device of this machine, got nowhere: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_reward_beside_where_the_command_is_called(photo_set, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "own_reward_module.py").write_text("def brightness(): pass\n")
    monkeypatch.chdir(tmp_path)
    result = invoke(photo_set, "--set", "stages.0.reward=own_reward_module:brightnes")
    assert result.exit_code != 0
    assert "own_reward_module has no 'brightnes'; did you mean brightness?" in result.stderr


@pytest.mark.parametrize("kind", [ServiceError, NotImplementedError])
def test_a_service_or_a_generator_that_cannot_is_one_line(kind, tmp_path, monkeypatch):
    def refuse(*_):
        raise kind("what is missing")

    monkeypatch.setattr(loop, "train", refuse)
    result = invoke("d", "--out", tmp_path)
    assert (result.exit_code, result.stderr) == (2, "what is missing\n")


def test_mistakes_are_one_line(tmp_path):
    result = invoke("d", "--set", "bach=3")
    assert (result.exit_code, result.stderr) == (2, "bach: no such setting; did you mean batch?\n")
    result = invoke("--out", tmp_path)
    assert (result.exit_code, result.stderr) == (2, "data: expected at least one folder, got none\n")
    result = invoke(tmp_path / "none", "--out", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(
        f"{tmp_path / 'none' / 'index.jsonl'}: not found; expected a folder with index.jsonl, "
    )
    assert len(result.stderr.splitlines()) == 1
