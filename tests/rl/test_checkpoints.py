"""Checkpoints of a run: which one it goes on from, which ones stay."""

from __future__ import annotations

import os
import re

import pytest

from finpercep.rl.checkpoints import checkpoints, write_checkpoint
from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.loop import train
from finpercep.rl.monitors import MonitorConfig
from tests.rl.conftest import Kill


def write(out, step, keep):
    write_checkpoint(out, step, {"step": step}, lambda folder: (folder / "generator").mkdir(), keep)
    os.utime(out / f"checkpoint-{step}" / "state.pt", ns=(0, len(os.listdir(out)) + step))  # clocks may be coarse


def steps(out):
    return [step for step, _ in checkpoints(out)]


def test_the_last_ones_stay(tmp_path):
    for step in (5, 10, 90, 100):
        write(tmp_path, step, 2)
    assert steps(tmp_path) == [90, 100]


def test_those_of_a_run_that_began_anew_stay(tmp_path):
    """Older ones of higher numbers make room for them, not the other way round."""
    write(tmp_path, 100, 1)
    os.utime(tmp_path / "checkpoint-100" / "state.pt", ns=(0, 0))
    write(tmp_path, 20, 1)
    assert steps(tmp_path) == [20]
    write(tmp_path, 100, 2)
    os.utime(tmp_path / "checkpoint-100" / "state.pt", ns=(0, 0))
    write(tmp_path, 40, 2)
    assert steps(tmp_path) == [20, 40]


def test_a_folder_without_a_state_is_no_checkpoint(tmp_path):
    write(tmp_path, 50, 2)
    (tmp_path / "checkpoint-100" / "generator").mkdir(parents=True)
    assert steps(tmp_path) == [50]


def test_a_damaged_state_is_left_by_deleting_its_folder(photo_set, tmp_path):
    """The run then goes on from the checkpoint before it, and its log stays."""
    config = RLConfig(
        (str(photo_set),),
        str(tmp_path / "run"),
        stages=(StageConfig(steps=3),),
        monitors=MonitorConfig(judge=""),
        batch=1,
        side=32,
        save_every=1,
        eval_every=9,
        eval_photos=2,
        eval_steps=1,
    )
    with pytest.raises(KeyError, match="killed"):
        train(config, [Kill(3)])
    damaged = tmp_path / "run" / "checkpoint-2"
    (damaged / "state.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=re.escape(f"; delete {damaged} to go on from the checkpoint before it")):
        train(config)
    (damaged / "state.pt").unlink()
    seen = []

    class Told(Kill):
        def start(self, lines, *, done, total):
            seen.append(done)

    train(config, [Told(9)])
    assert seen == [1]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_as_many_stay_as_are_kept(tmp_path, keep):
    for step in range(1, 9):
        write(tmp_path, step, keep)
        assert steps(tmp_path) == list(range(max(1, step - keep + 1), step + 1))
