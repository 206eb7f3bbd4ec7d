"""Time by part: what is inside another part is taken out of it."""

from __future__ import annotations

import pytest
import torch

from finpercep.engine import profiled
from finpercep.rl import clock as clock_module
from finpercep.rl.clock import Clock, timed


def test_parts(monkeypatch):
    times = iter(range(100))
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: float(next(times)))
    clock = Clock(torch.device("cpu"))
    with clock.running():  # 0
        with timed("rollout"), timed("reward"):  # 1, 2
            pass  # 3, 4
        with timed("update"):  # 5
            pass  # 6
    assert clock.seconds() == {"other": 3.0, "rollout": 2.0, "reward": 1.0, "update": 1.0}


def test_without_a_clock():
    with timed("reward"):
        pass


def test_an_error_ends_the_part():
    clock = Clock(torch.device("cpu"))
    with pytest.raises(KeyError), clock.running(), timed("reward"):
        raise KeyError
    assert [name for name, _ in clock.marks] == ["other", "reward", "other", ""]


def test_parts_are_spans_of_whoever_profiles():
    with profiled() as p, timed("rollout"), timed("reward"):
        pass
    assert [name for name in p.times() if name != "other"] == ["rollout/reward", "rollout"]
