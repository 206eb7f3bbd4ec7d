"""The table of a step's parts: what is a part's, what is not measured again, and a row of each mode that runs."""

from __future__ import annotations

import json
import time
from collections import defaultdict

import pytest
import torch

from benchmarks import rl_step
from finpercep import ops
from tests.rl.conftest import photo_set  # noqa: F401

SMALL = ["side=32", "batch=1", "eval_photos=1", "eval_steps=1", "monitors.judge=''"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rl_step, "WARM", 1)
    monkeypatch.setattr(rl_step, "LEAST", 2)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Slow(torch.autograd.Function):
    """x, and a backward pass that takes its time."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


def test_the_backward_pass_of_a_part_is_all_of_that_and_nothing_else():
    source = Slow.apply(torch.ones(2, requires_grad=True), 0.3)  # what comes behind is not the part's
    result, beside = Slow.apply(source, 0.05), Slow.apply(torch.ones(2, requires_grad=True), 0.3)
    spent = defaultdict(float)
    rl_step.watch(result, source, "part", spent)
    (Slow.apply(result, 0.3).sum() + beside.sum()).backward()
    assert 0.05 <= spent["part"] < 0.2
    rl_step.watch(result.detach(), source, "none", spent)
    assert "none" not in spent


def test_operators_run_by_the_chosen_backend(monkeypatch):
    asked = []
    monkeypatch.setattr(ops, "group_advantage", lambda rewards, backend: asked.append(backend) or (rewards, None))
    with rl_step.timed_operators() as (chosen, spent, calls):
        ops.group_advantage(torch.zeros(2))
        chosen[0] = "reference"
        ops.group_advantage(torch.zeros(2))
    assert asked == [None, "reference"]
    assert calls == {"group_advantage": 2}
    assert spent["group_advantage"] > 0


@pytest.mark.parametrize("algorithm", rl_step.ALGORITHMS)
def test_parts_make_up_the_step(photo_set, algorithm):  # noqa: F811
    row = {"generator": rl_step.TINY, "algorithm": algorithm, "mode": "eager", "settings": SMALL}
    found = rl_step.measure(row, [str(photo_set)], 0.0)
    assert found["steps"] == 2
    assert all(found[name] > 0 for name in rl_step.PARTS)
    assert sum(found[name] for name in rl_step.PARTS) == pytest.approx(found["step"])  # the median of two is their mean
    assert 0 < found["share"] < 1
    assert found["peak"] >= found["peak_before"] > 1e8


def test_the_reward_of_refl_has_its_backward_pass(photo_set, monkeypatch):  # noqa: F811
    row = {"generator": rl_step.TINY, "algorithm": "refl", "mode": "eager", "settings": SMALL}
    forward = rl_step.refl.score

    def slow(reward, images, batch):
        output = forward(reward, images, batch)
        return output._replace(score=Slow.apply(output.score, 0.5))

    monkeypatch.setattr(rl_step.refl, "score", slow)
    found = rl_step.measure(row, [str(photo_set)], 0.0)
    assert found["reward"] > 0.5
    assert sum(found[name] for name in rl_step.PARTS) == pytest.approx(found["step"])


def test_operators_of_a_small_sd3(photo_set):  # noqa: F811
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    settings = [*SMALL, "generator_options.rank=2", "algorithm.group_size=2"]
    row = {"generator": rl_step.SD3, "algorithm": "grpo", "mode": "operators", "settings": settings}
    found = rl_step.measure(row, [str(photo_set)], 0.0)
    # two steps drawn, scored and trained; the reward has Eq. 7
    assert found["calls"] == {"sde_step": 4, "group_advantage": 1, "grpo_loss": 1, "modulate": 1}
    for seconds in found["operators"].values():
        assert min(seconds.values()) > 0


def test_rows_are_kept_and_not_measured_again(tmp_path, capsys, monkeypatch):
    measured = []

    def measure(row, data, seconds):
        measured.append((row["algorithm"], row["mode"]))
        if row["mode"] == "operators":
            by_name = {name: {"kernel": 0.001, "reference": 0.002} for name in rl_step.OPERATORS}
            return {"operators": by_name, "calls": dict.fromkeys(by_name, 3), "step": 0.1}
        step = {"eager": 1.2, "compiled": 1.0}[row["mode"]]
        figures = {
            "rollout": 0.5,
            "reward": 0.3,
            "update": 0.2,
            "other": 0.1,
            "share": 0.3 if row["algorithm"] == "nft" else 0.1,
        }
        return {"steps": 6, "warm_up": 30.2, "step": step, **figures, "peak": 5e8, "peak_before": 4e8}

    monkeypatch.setattr(rl_step, "in_own_process", measure)
    common = ["data", "--generators", rl_step.TINY, "--results", str(tmp_path)]
    rl_step.main([*common, "--algorithms", "nft"])
    assert measured == [("nft", "eager")]
    rl_step.main([*common, "--algorithms", "grpo", "nft", "dpo"])
    assert measured[1:] == [("grpo", "eager"), ("grpo", "operators"), ("dpo", "eager"), ("grpo", "compiled")]
    rows = json.loads((tmp_path / "rl_step.json").read_text())["rows"]
    assert [row["algorithm"] for row in rows] == ["dpo"] + ["grpo"] * 3 + ["nft"]  # in the order of the table
    page = (tmp_path / "rl_step.md").read_text()
    assert page in capsys.readouterr().out
    row = "| grpo | compiled: 1.20 × after 30 s | 6 | 500 | 300 | 200 | 100 | 1000 | 10 % | 500 (400 before the"
    assert row in page
    assert "20 % with the embedded generator, eagerly: missed by nft.\n" in page
    assert "| sde_step | finpercep-sr-tiny | 3 | 1.00 | 2.00 | 2.0 | 1.00 % |" in page
