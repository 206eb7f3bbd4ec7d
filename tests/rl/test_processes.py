"""Runs in processes of their own: two as one, and kills at any moment."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finpercep.rl.config import StageConfig
from finpercep.rl.generators import SRTiny
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.settings import as_yaml
from tests.rl.test_trainer import ALGORITHMS, config, lines  # noqa: F401

pytestmark = pytest.mark.slow
PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from finpercep.rl.loop import train
from finpercep.rl.settings import resolve
train(resolve(sys.argv[1]))
"""


def start(settings, file: Path, **environment: str) -> subprocess.Popen[bytes]:
    file.write_text(as_yaml(settings))
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(file)], cwd=root, env={**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    )


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_two_processes_are_one(config, tmp_path):  # noqa: F811
    """Flow-GRPO: the same groups, rewards, losses and weights."""
    stages = (StageConfig(steps=2, lr=1e-3),)
    settings = replace(config, algorithm=ALGORITHMS["grpo"], stages=stages, monitors=MonitorConfig(judge=""))
    two = replace(settings, out=str(tmp_path / "two"))
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    running = [start(two, tmp_path / f"{rank}.yaml", **together, RANK=str(rank)) for rank in range(2)]
    alone = start(settings, tmp_path / "one.yaml")
    assert [process.wait(240) for process in (*running, alone)] == [0, 0, 0]
    for first, second in zip(lines(tmp_path / "run"), lines(tmp_path / "two"), strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert second[name] == pytest.approx(value, abs=1e-5), name
    weights = [SRTiny.from_pretrained(tmp_path / name / "generator").state_dict() for name in ("run", "two")]
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
        process = start(broken, tmp_path / "broken.yaml")
        begun = len(log(tmp_path / "broken"))
        deadline = time.monotonic() + 60
        while len(log(tmp_path / "broken")) <= begun and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(broken, tmp_path / "broken.yaml").wait(240) == 0
    assert start(settings, tmp_path / "whole.yaml").wait(240) == 0
    assert lines(tmp_path / "run") == lines(tmp_path / "broken")
    files = [(tmp_path / name / "generator" / "model.safetensors").read_bytes() for name in ("run", "broken")]
    assert files[0] == files[1]


def log(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []
