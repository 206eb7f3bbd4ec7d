"""Two processes as one: the same images, losses and weights, normalizations and climbed images included."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from finpercep.runs.ranks import own_device
from finpercep.training.climbing import ClimbConfig
from finpercep.training.config import RewardTrainConfig
from finpercep.training.trainer import RewardTrainer, train
from tests.processes import together
from tests.training.test_trainer import ENCODER, Recorder, config, full  # noqa: F401

pytestmark = pytest.mark.slow
PROGRAM = """
import pickle, sys, torch
torch.set_num_threads(1)
from finpercep.training.trainer import train
from tests.training.test_trainer import Recorder
told = []
for settings in pickle.load(open(sys.argv[1], "rb")):
    recorder = Recorder()
    train(settings, [recorder])
    told.append([entry[2] for entry in recorder.told if entry[0] == "log"])
pickle.dump(told, open(sys.argv[2], "wb"))
"""
# Three of twelve images, and two: one process has more of the three.
CLIMB = ClimbConfig(climbed=0.75, climb_networks=0.5, climb_steps=(1, 2))


def start(folder: Path, rank: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder / "runs"), str(folder / f"told{rank}")],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **environment, "RANK": str(rank)},
    )


def runs_of(config: RewardTrainConfig) -> list[RewardTrainConfig]:  # noqa: F811
    """Three steps of a full model each: without normalizations and with climbed images, and with normalizations."""
    config = dataclasses.replace(config, batch=4)
    plain = dataclasses.replace(config, out=config.out + "-plain", encoder={**ENCODER, "norm": False})
    grown = dataclasses.replace(full(plain), out=plain.out + "-full", decoder={"width": 8})
    for one in (config, plain, grown):  # a model that has just grown has an L_align of 0, whose gradient is rounding's
        train(one)
    common = {"steps": 3, "log_every": 1, "dev_every": 3}
    more = {"climb": CLIMB, "ema": 0.9, "evaluate_every": 3, "evaluate_scenes": 1}
    smooth = dataclasses.replace(full(plain), init=grown.out, out=plain.out + "-on", **common, **more)
    return [smooth, dataclasses.replace(full(config), **common)]


def test_two_processes_are_one(config, tmp_path):  # noqa: F811
    alone = runs_of(config)
    of_two = [dataclasses.replace(run, out=run.out + "-two") for run in alone]
    (tmp_path / "runs").write_bytes(pickle.dumps(of_two))
    environment = together()
    processes = [start(tmp_path, rank, environment) for rank in range(2)]
    expected = []
    for run in alone:
        recorder = Recorder()
        train(run, [recorder])
        expected.append([entry[2] for entry in recorder.told if entry[0] == "log"])
    assert [process.wait(240) for process in processes] == [0, 0]
    found, silent = (pickle.loads((tmp_path / f"told{rank}").read_bytes()) for rank in range(2))
    assert silent == [[], []]
    for ours, theirs in zip(expected, found, strict=True):
        assert len(ours) == len(theirs) == 3
        for one, other in zip(ours, theirs, strict=True):
            assert other == pytest.approx(one, abs=1e-5)
    assert "climb" in found[0][0]
    assert "dev/auc" in found[0][2]
    states = [[torch.load(Path(run.out) / "state.pt", weights_only=True) for run in runs] for runs in (alone, of_two)]
    for one, other in zip(*states, strict=True):
        normalized = any("running_mean" in name for name in one["model"])
        for name, tensor in one["model"].items():
            if normalized and name.endswith((".0.bias", "running_mean")):
                continue  # a normalization takes a bias away: its gradient is rounding, which Adam makes a whole step
            torch.testing.assert_close(other["model"][name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    for average, same in zip(*(state[0]["average"] for state in states), strict=True):
        torch.testing.assert_close(same, average, atol=1e-5, rtol=1e-4)


def test_a_batch_that_cannot_be_shared_is_refused(config, monkeypatch):  # noqa: F811
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"^batch: expected a multiple of the 2 processes, got 3$"):
        RewardTrainer(dataclasses.replace(config, batch=3))


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert own_device("cuda") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device("cuda") == torch.device("cuda:3")
    assert [own_device(name) for name in ("cuda:1", "cpu")] == [torch.device("cuda:1"), torch.device("cpu")]
    assert chosen == [torch.device("cuda:3")]
