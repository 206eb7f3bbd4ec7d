"""The reward's losses seen through a generator: which reward is climbed how, what is kept, and what is made anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import rl_ablations
from finpercep.models import RewardModel


@pytest.fixture
def asked(monkeypatch):
    """The trainings that are asked for; those of generators write what a run would."""
    made = {"rewards": [], "runs": []}

    def trained(args, name, seed, *, base, dev_every, **changes):
        made["rewards"].append((name, seed, base, dev_every, changes))
        return RewardModel.from_pretrained("finpercep-tiny")

    def train(config):
        made["runs"].append(config)
        lines = [{"step": 0, **{f"eval/{name}": 0.5 for name in rl_ablations.FIGURES}}, {"step": 1, "loss": 3.0}]
        lines.append({"step": 2, **{f"eval/{name}": 0.25 for name in rl_ablations.FIGURES}})
        Path(config.out).mkdir(parents=True)
        Path(config.out, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(rl_ablations, "trained", trained)
    monkeypatch.setattr(rl_ablations, "train", train)
    monkeypatch.setattr("benchmarks.reward_runs.load_scenes", lambda *_: [])
    return made


def test_each_reward_is_climbed_and_kept(asked, tmp_path, monkeypatch):
    words = ["data", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--seeds", "0", "1"]
    rl_ablations.main(words)
    assert [(name, seed) for name, seed, *_ in asked["rewards"]] == [
        (name, seed) for seed in (0, 1) for name in ("losses rank", "losses rank, map", "full")
    ]
    assert {(base, dev) for _, _, base, dev, _ in asked["rewards"]} == {("full", 5)}
    assert [changes["loss"].map if changes else None for *_, changes in asked["rewards"]][:3] == [0.0, 1.0, None]
    stages = [config.stages[0] for config in asked["runs"]]
    assert [(stage.score_weight, stage.map_weight) for stage in stages[:3]] == [(1, 0), (0.5, 0.5), (0.5, 0.5)]
    assert {(config.dev_every, stage.steps) for config, stage in zip(asked["runs"], stages, strict=True)} == {(5, 100)}
    assert [config.seed for config in asked["runs"]] == [0, 0, 0, 1, 1, 1]
    for stage in stages:
        RewardModel.from_pretrained(stage.reward)
    table = (tmp_path / "rl_ablations.md").read_text().splitlines()
    assert table[2] == "| rank | 2 |" + 5 * " -0.2500 ± 0.0000 |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| rank", "| rank, map", "| rank, map, align"]
    rl_ablations.main(words)
    assert len(asked["runs"]) == 6  # all is there
    monkeypatch.setattr(rl_ablations, "SETTINGS", [*rl_ablations.SETTINGS, "batch=2"])
    rl_ablations.main([*words[:-3], "--runs", str(tmp_path / "again"), "--seeds", "0"])
    assert [config.batch for config in asked["runs"][6:]] == [2, 2, 2]
