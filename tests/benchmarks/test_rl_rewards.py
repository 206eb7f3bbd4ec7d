"""Reward models in a loop: what is asked for, what the table says, and what is made anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import rl_claim, rl_rewards

CURVE = ((0, 0.5), (10, 0.48), (20, 0.25))


@pytest.fixture
def asked(monkeypatch):
    """The runs that are asked for; each writes what a run would."""
    made = []

    def train(config):
        made.append(config)
        lines = [{"step": at, **{f"eval/{name}": value for name in rl_rewards.FIGURES}} for at, value in CURVE]
        lines[-1]["alarms"] = ["rose"]
        Path(config.out).mkdir(parents=True)
        Path(config.out, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(rl_claim, "train", train)
    return made


def test_each_reward_is_climbed_over_seeds(asked, tmp_path):
    words = ["data", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--figure", str(tmp_path / "f.png")]
    words += ["--weights", "1", "5", "--seeds", "0", "1"]
    rl_rewards.main(words)
    assert [(config.stages[0].reward, config.algorithm.weight, config.seed) for config in asked] == [
        (reward, weight, seed) for seed in (0, 1) for weight in (1.0, 5.0) for reward in rl_rewards.REWARDS
    ]
    assert {(config.stages[0].steps, config.stages[0].lr) for config in asked} == {(120, 2e-4)}
    lines = (tmp_path / "rl_rewards.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| finpercep-small-rl")] == [
        *(f"| finpercep-small-rl | {weight} | 2 |" + 6 * " -0.2500 ± 0.0000 |" + " 2 |" for weight in (1, 5)),
        "| finpercep-small-rl | -0.0200 | -0.0200 | 1 | 10 |",  # at step 20 PSNR has lost more than the limit
    ]
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
    rl_rewards.main(words)
    assert len(asked) == 4 * len(rl_rewards.REWARDS)  # all is there
    asked.clear()
    rl_rewards.main([*words[:-5], "5", "--seeds", "1", "--rewards", "finpercep-tiny", "--steps", "40"])
    assert [(config.stages[0].steps, config.eval_every) for config in asked] == [(40, 10)]
    found = json.loads((tmp_path / "rl_rewards.json").read_text())["runs"]
    assert len(found) == 4 * len(rl_rewards.REWARDS)  # the run of other settings is replaced


def test_sharpness():
    flat, board = torch.full((1, 3, 6, 6), 0.5), (torch.arange(6)[:, None] + torch.arange(6)).remainder(2.0)
    scores, _ = rl_rewards.sharpness(torch.cat([flat, board.expand(1, 3, 6, 6)]), [], [])
    assert scores.tolist() == [0.0, 40.0]
