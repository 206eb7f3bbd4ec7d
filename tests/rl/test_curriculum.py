"""Stages one after the other, with a hard switch."""

from __future__ import annotations

import pytest

from finpercep.rewards import StageReward
from finpercep.rl.curriculum import Curriculum, Stage
from tests.rl.toy import Red


def test_hard_switch():
    first, second = StageReward(Red(), 1.0, 0.0), StageReward(Red(), 0.5, 0.5)
    curriculum = Curriculum([Stage(first, 2, 1e-3), Stage(second, 3)])
    assert curriculum.steps == 5
    assert curriculum.fingerprints == (first.fingerprint, second.fingerprint)
    assert len(set(curriculum.fingerprints)) == 2
    found = [(m.number, m.step, m.stage.reward) for m in map(curriculum.at, range(5))]
    assert found == [(0, 0, first), (0, 1, first), (1, 0, second), (1, 1, second), (1, 2, second)]
    assert curriculum.at(4).stage.lr == 1e-5
    with pytest.raises(ValueError, match="step: expected 0 to 4, got 5"):
        curriculum.at(5)


def test_nothing_to_do():
    with pytest.raises(ValueError, match="at least one, got none"):
        Curriculum([])
    with pytest.raises(ValueError, match="at least 1 step in a stage, got 0"):
        Stage(Red(), 0)
