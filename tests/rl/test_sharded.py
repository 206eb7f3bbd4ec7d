"""Frozen weights divided between two processes: each holds half of them, and learns what one process learns."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finpercep.rl import held_out, scores
from finpercep.rl.config import KINDS, RLConfig, StageConfig
from finpercep.rl.dpo import DPOConfig
from finpercep.rl.generators import GeneratorConfig
from finpercep.rl.grpo import GRPOConfig
from finpercep.rl.loop import train
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.nft import NFTConfig
from finpercep.rl.settings_yaml import as_yaml
from finpercep.rl.trainer import RLTrainer
from tests.processes import together
from tests.rl.generators.pipelines import save_flux, save_sd3, save_upscaler
from tests.rl.test_trainer import lines

PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from torch.distributed.tensor import DTensor
from finpercep.rl import held_out, scores
from finpercep.rl.loop import train
from finpercep.rl.settings import resolve
from finpercep.rl.trainer import RLTrainer
held_out.as_file = scores.as_file = lambda images: images
for file in sys.argv[1:]:
    generator = RLTrainer(resolve(file)).generator
    for network in generator.networks():
        for name, weight in network.named_parameters():
            assert isinstance(weight, DTensor) == (not weight.requires_grad), name
        frozen = [weight for weight in network.parameters() if not weight.requires_grad]
        held, whole = sum(w.to_local().numel() for w in frozen), sum(w.numel() for w in frozen)
        assert 0.4 < held / whole < 0.6, (held, whole)
    train(resolve(file))
"""
RUNS = {
    "sd3-refl": (save_sd3, "refl", {"steps": 2, "late": 1}, {}),
    "sd3-grpo": (save_sd3, "grpo", {"steps": 2, "group_size": 2, "beta": 0.1, "keep_dead": True}, {}),
    "flux-nft": (save_flux, "nft", {"steps": 2, "group_size": 2, "reference_weight": 0.1, "keep_dead": True}, {}),
    "upscaler-refl": (save_upscaler, "refl", {"steps": 2, "late": 1}, {"checkpointing": True}),
}


def options(photo_set: Path, out: Path) -> RLConfig:
    return RLConfig(
        data=(str(photo_set),),
        out=str(out),
        generator_options=GeneratorConfig(rank=2, alpha=8),
        stages=(StageConfig(steps=2, lr=1e-3),),
        monitors=MonitorConfig(judge=""),
        batch=2,
        side=32,
        save_every=1,
        eval_every=2,
        eval_photos=1,
        eval_steps=1,
    )


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(photo_set, tmp_path, monkeypatch):
    """With adapters of three layouts; all groups are alive here, so that `keep_dead` changes nothing."""
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    environment = {**os.environ, **together()}
    files, ones = [], {}
    for name, (save, algorithm, settings, trained) in RUNS.items():
        one = options(photo_set, tmp_path / f"{name}-1")
        ones[name] = replace(
            one,
            generator=str(save(tmp_path / name)),
            generator_options=replace(one.generator_options, **trained),
            algorithm=KINDS[algorithm](**settings),
        )
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(as_yaml(replace(ones[name], out=str(tmp_path / f"{name}-2"), shard=True)))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, files)],
            cwd=Path(__file__).resolve().parents[2],
            env={**environment, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for module in (held_out, scores):
        monkeypatch.setattr(module, "as_file", lambda images: images)
    for settings in ones.values():
        train(settings)
    assert [process.wait(400) for process in running] == [0, 0]
    for name in RUNS:
        one, two = tmp_path / f"{name}-1", tmp_path / f"{name}-2"
        for first, second in zip(lines(one), lines(two), strict=True):
            assert second == pytest.approx(first, abs=1e-4), name
        weights = [torch.load(at / "checkpoint-2" / "state.pt", weights_only=True)["generator"] for at in (one, two)]
        assert weights[0]
        assert weights[0].keys() == weights[1].keys()
        for key, tensor in weights[0].items():
            torch.testing.assert_close(weights[1][key], tensor, atol=1e-4, rtol=1e-3)
            assert type(weights[1][key]) is torch.Tensor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": DPOConfig()}, "shard: expected refl, grpo, nft, or dpo with pairs given"),
        ({"algorithm": GRPOConfig()}, "shard: expected algorithm.keep_dead true"),
        ({"algorithm": NFTConfig()}, "shard: expected algorithm.keep_dead true"),
        ({"compile": True}, "shard: expected compile false, got true"),
    ],
)
def test_what_cannot_be_sharded(photo_set, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(options(photo_set, tmp_path), shard=True, **changes)


def test_trained_weights_are_not_divided(photo_set, tmp_path):
    with pytest.raises(ValueError, match=r"shard: expected a pipeline of diffusers .*; got SRTiny with weights that"):
        RLTrainer(replace(options(photo_set, tmp_path), shard=True))
