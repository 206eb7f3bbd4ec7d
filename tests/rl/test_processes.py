"""Runs in processes of their own: two as one, and kills at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finpercep.models import RewardOutput
from finpercep.rl import held_out, scores
from finpercep.rl.config import StageConfig
from finpercep.rl.generators import SRTiny
from finpercep.rl.loop import train
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.settings_yaml import as_yaml
from tests.processes import together
from tests.rl.test_trainer import ALGORITHMS, config, lines  # noqa: F401

BRIGHT = 0.46
pytestmark = pytest.mark.slow
PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from finpercep.rl import held_out, scores
from finpercep.rl.loop import train
from finpercep.rl.settings import resolve
if "--exact" in sys.argv:
    held_out.as_file = scores.as_file = lambda images: images
    torch.backends.mkldnn.set_flags(False)
    sys.argv.remove("--exact")
for file in sys.argv[1:]:
    train(resolve(file))
"""

SIZES = """
from finpercep.runs.ranks import Ranks
ranks = Ranks(torch.device("cpu"))
open(f"size-{ranks.rank}", "w").write(f"{ranks.rank} of {ranks.size}")
"""


def start(runs, folder: Path, *words: str, stderr=None, **environment: str) -> subprocess.Popen[bytes]:
    """A process that makes these runs, one after the other; their settings are written to `folder`."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}.yaml" for number in range(len(runs))]
    for settings, file in zip(runs, files, strict=True):
        file.write_text(as_yaml(settings))
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words, *map(str, files)],
        cwd=root,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        stderr=stderr,
    )


def brightness(images: torch.Tensor) -> torch.Tensor:
    """Around 0, where float32 is fine enough for groups whose results hardly differ."""
    return (images.double().flatten(1).mean(1) - BRIGHT).float()


class Plain:
    """How bright results are. Models round what they score to 8 bits, and so make steps of differences in fp32."""

    fingerprint = "plain-1"

    def __call__(self, images: torch.Tensor) -> RewardOutput:
        return RewardOutput(brightness(images), None)


class Bright:
    """How bright results are, in images that are bright themselves; the groups of all others are dead."""

    fingerprint = "bright-1"
    takes = ("lr",)

    def __call__(self, images: torch.Tensor, lr: torch.Tensor) -> RewardOutput:
        alive = lr.flatten(1).mean(1) > BRIGHT
        return RewardOutput(brightness(images) * alive, None)


class Mapped(Bright):
    """`Bright`, with a map: how blue."""

    fingerprint = "mapped-1"

    def __call__(self, images: torch.Tensor, lr: torch.Tensor) -> RewardOutput:
        return RewardOutput(super().__call__(images, lr).score, images[:, 2:])


def runs_of(config):  # noqa: F811
    """Each algorithm, and those that use groups where some are dead; settings for two processes, by name."""
    monitors = MonitorConfig(judge="")
    here = "tests.rl.test_processes"
    for name, algorithm in ALGORITHMS.items():
        if name == "dpo":
            algorithm = replace(algorithm, beta=20.0)  # at 2000 the loss shows the last bit of the weights
        # Adam makes whole steps of small gradients: those of NFT that differ in the last bit have a smaller rate.
        first, rate = (f"{here}:Plain", 1e-4) if name == "nft" else (StageConfig.reward, 1e-3)
        for suffix, stage in {"": StageConfig(first, 2, rate), "-dead": StageConfig(f"{here}:Bright", 3, rate)}.items():
            if name != "refl" or not suffix:
                yield name + suffix, replace(config, algorithm=algorithm, stages=(stage,), monitors=monitors)
        if name == "nft":
            old = replace(algorithm, old_decay=0.5, old_rate=0.4)
            yield "nft-old-dead", replace(config, algorithm=old, stages=(stage,), monitors=monitors)
        if name in ("grpo", "nft"):
            mapped = replace(algorithm, map_weight=0.5)  # where scores are equal, the map still teaches
            stage = StageConfig(f"{here}:Mapped", 3, rate / 10, score_weight=1.0, map_weight=0.0)
            yield f"{name}-mapped", replace(config, algorithm=mapped, stages=(stage,), monitors=monitors)
            # Groups that both processes have a part of, as large ones of a single image.
            divided = replace(algorithm, across=True, group_size=4, map_weight=0.5)
            if name == "grpo":
                divided = replace(divided, shared_noise=True, photo_weight=0.1)
            else:
                divided = replace(divided, old_decay=0.5, old_rate=0.4)
            stage = StageConfig(f"{here}:Mapped", 2, rate)
            yield f"{name}-across", replace(config, algorithm=divided, stages=(stage,), monitors=monitors)


@pytest.mark.filterwarnings("ignore:step . is skipped")
def test_two_processes_are_one(config, tmp_path, monkeypatch):  # noqa: F811
    """The same groups, draws, rewards, losses and weights; all runs one after the other, in two processes, as in one.

    A process whose groups are all dead takes part in the updates of the other; a step that teaches neither is skipped
    in both.
    """
    runs = {name: replace(settings, out=str(tmp_path / f"{name}-1")) for name, settings in runs_of(config)}
    two = [replace(settings, out=str(tmp_path / f"{name}-2")) for name, settings in runs.items()]
    environment = together()
    running = [start(two, tmp_path / str(rank), "--exact", **environment, RANK=str(rank)) for rank in range(2)]
    for settings in runs.values():
        exactly(settings, monkeypatch)
    assert [process.wait(240) for process in running] == [0, 0]
    for name in runs:
        check_alike(tmp_path / f"{name}-1", tmp_path / f"{name}-2")
        steps = lines(tmp_path / f"{name}-1")[1:]
        skipped = sum("loss" not in line for line in steps)
        assert steps[-1].get("skipped", 0) == skipped
        if name.endswith("mapped"):
            assert not skipped
            assert {line["zero_std_ratio"] for line in steps} == {0.0, 0.5, 1.0}
        if name.endswith("dead"):
            assert {line["zero_std_ratio"] for line in steps} == {0.0, 0.5, 1.0}
            assert skipped == sum(line["zero_std_ratio"] == 1 for line in steps)


def test_a_process_that_ends_ends_the_run(config, tmp_path):  # noqa: F811
    """The other one says so in one line; the run goes on from its checkpoint."""
    stages = (StageConfig(steps=400, lr=1e-3),)
    settings = replace(config, algorithm=ALGORITHMS["refl"], stages=stages, monitors=MonitorConfig(judge=""), batch=2)
    environment = together()
    first, other = (
        start([settings], tmp_path / str(rank), **environment, RANK=str(rank), stderr=subprocess.PIPE)
        for rank in (0, 1)
    )
    log = Path(settings.out) / "metrics.jsonl"
    while not (log.is_file() and len(lines(log.parent)) > 3):
        assert first.poll() is None
        time.sleep(0.1)
    other.kill()
    said = first.communicate(timeout=60)[1].decode().splitlines()
    other.communicate()
    assert first.returncode == 1
    assert said[-1].startswith("[rank0]: ConnectionError: processes: expected all of them to go on, got no answer")
    assert list(log.parent.glob("checkpoint-*"))


def test_accelerate_starts_two_processes(config, tmp_path, monkeypatch):  # noqa: F811
    """On a CPU, with nothing configured: what one process learns, each on its share of the images."""
    pytest.importorskip("accelerate")
    (tmp_path / "program.py").write_text(PROGRAM + SIZES)
    one = replace(config, algorithm=ALGORITHMS["grpo"], monitors=MonitorConfig(judge=""), out=str(tmp_path / "one"))
    (tmp_path / "run.yaml").write_text(as_yaml(replace(one, out=str(tmp_path / "two"))))
    environment = together()
    words = ["--multi_gpu", "--num_processes", "2", "--main_process_port", environment["MASTER_PORT"]]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *words, tmp_path / "program.py", "--exact", "run.yaml"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "HF_HOME": str(tmp_path / "home")},
    )
    exactly(one, monkeypatch)
    assert process.wait(240) == 0
    assert sorted(file.read_text() for file in tmp_path.glob("size-*")) == ["0 of 2", "1 of 2"]
    check_alike(tmp_path / "one", tmp_path / "two")


def exactly(settings, monkeypatch):
    """A run here as `--exact` makes it there, so that an image is the same alone and beside others.

    Rounding to 8 bits would make steps of what differs in the last bit, and how oneDNN rounds goes by the batch.
    """
    for module in (held_out, scores):
        monkeypatch.setattr(module, "as_file", lambda images: images)
    with torch.backends.mkldnn.flags(enabled=False):
        train(settings)


def check_alike(one, two):
    for first, second in zip(lines(one), lines(two), strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert second[name] == pytest.approx(value, abs=1e-5), (one.name, name)
    weights = [SRTiny.from_pretrained(folder / "generator").state_dict() for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4)


def test_killed_at_random_moments(config, tmp_path):  # noqa: F811
    """kill -9 five times; the end is that of the run that was never stopped, to the bit."""
    stages = (StageConfig(steps=12, lr=1e-3),)
    monitors = MonitorConfig(judge="", patience=1)
    settings = replace(config, stages=stages, save_every=1, ema=0.9, algorithm=ALGORITHMS["refl"], monitors=monitors)
    broken = replace(settings, out=str(tmp_path / "broken"))
    draw = random.Random(0)
    for _ in range(5):
        process = start([broken], tmp_path / "files")
        begun = len(log(tmp_path / "broken"))
        deadline = time.monotonic() + 60
        while len(log(tmp_path / "broken")) <= begun and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start([broken], tmp_path / "files").wait(240) == 0
    assert start([settings], tmp_path / "files").wait(240) == 0
    assert lines(tmp_path / "run") == lines(tmp_path / "broken")
    files = [(tmp_path / name / "generator" / "model.safetensors").read_bytes() for name in ("run", "broken")]
    assert files[0] == files[1]


def log(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []
