"""Stages one after the other: hard switch, blend, and an end by evidence."""

from __future__ import annotations

import pytest
import torch

from finpercep.rewards import Mixture, StageReward
from finpercep.rl.curriculum import Curriculum, CurriculumConfig, Evidence, Stage, evidence, paired
from tests.rl.toy import Given, Red


def test_hard_switch():
    first, second = StageReward(Red(), 1.0, 0.0), StageReward(Red(), 0.5, 0.5)
    curriculum = Curriculum([Stage(first, 2, 1e-3), Stage(second, 3)])
    assert curriculum.steps == 5
    assert curriculum.fingerprints == (first.fingerprint, second.fingerprint)
    assert len(set(curriculum.fingerprints)) == 2
    assert not curriculum.note(1, [0.5, 0.5])
    assert curriculum.evidence is None
    found = [(m.number, m.step, m.reward) for m in map(curriculum.at, range(5))]
    assert found == [(0, 0, first), (0, 1, first), (1, 0, second), (1, 1, second), (1, 2, second)]
    assert curriculum.at(4).stage.lr == 1e-5
    assert [curriculum.at(step).rate for step in (0, 1, 2)] == pytest.approx([1e-3, 5e-4, 1e-5])
    with pytest.raises(ValueError, match="step: expected 0 to 4, got 5"):
        curriculum.at(5)


def test_blend():
    """Weights 1/4, 2/4, 3/4 of the new reward, then the new one alone; the first stage has nothing before it."""
    stages = [Stage(Given([1.0]), 2), Stage(Given([3.0]), 6)]
    curriculum = Curriculum(stages, CurriculumConfig("blend", blend_steps=4))
    scores = [float(curriculum.at(step).reward(torch.zeros(1, 3, 2, 2)).score) for step in range(8)]
    assert scores == pytest.approx([1, 1, 1.5, 2, 2.5, 3, 3, 3])
    moment = curriculum.at(2)
    assert isinstance(moment.reward, Mixture)
    assert (moment.blend, curriculum.at(5).blend, curriculum.at(0).before) == (0.25, 1.0, None)
    mixture = Mixture({"a": (Given([1.0]), 2.0), "b": (Given([10.0]), 0.5)})
    curriculum = Curriculum([Stage(mixture, 2), stages[1]], CurriculumConfig("blend", blend_steps=4))
    parts = curriculum.at(2).reward  # three quarters of each part of the former, a quarter of the new one
    assert parts.weights == {"before_a": 1.5, "before_b": 0.375, "stage": 0.25}


def test_rewarm():
    """After a switch the rate rises over two steps; at the beginning of the run it does not."""
    stages = [Stage(Red(), 2, 1.0), Stage(Red(), 4, 1.0)]
    curriculum = Curriculum(stages, CurriculumConfig(optimizer="rewarm", rewarm_steps=2))
    assert [curriculum.at(step).rate for step in range(6)] == pytest.approx([1, 0.5, 0.5, 1, 1, 0.5])


def test_a_stage_ends_when_its_reward_is_flat():
    stages = [Stage(Red(), 100), Stage(Red(), 10), Stage(Red(), 5)]
    curriculum = Curriculum(stages, CurriculumConfig("auto", patience=1))
    gains = [0.0, 1.0, 1.9, 2.0]  # the last one is less than a fifth of the whole
    found = [curriculum.note(10 * i, [gain + photo for photo in (0.1, 0.5, 0.3)]) for i, gain in enumerate(gains)]
    assert found == [False, False, False, True]
    assert "less than 0.2 of 2.0000 since the first" in curriculum.evidence.reason
    assert curriculum.begins == [0, 30, 40]
    assert curriculum.steps == 45
    assert (curriculum.at(29).number, curriculum.at(30).number) == (0, 1)
    other = Curriculum(stages, CurriculumConfig("auto", patience=1))
    other.load_state(curriculum.state())
    assert other.begins == [0, 30, 40]
    assert other.measured == curriculum.measured


def test_a_measurement_where_a_stage_ends_anyway_is_of_the_old_stage():
    """It ends by its steps, and the next one, whose reward has not been measured, goes on."""
    curriculum = Curriculum([Stage(Red(), 10)] * 3, CurriculumConfig("auto", patience=1))
    assert [curriculum.note(done, [1.0, 1.0]) for done in (0, 10)] == [False, False]
    assert curriculum.evidence.flat
    assert curriculum.begins == [0, 10, 20]


def test_other_versions_of_a_reward_are_not_compared_with():
    curriculum = Curriculum([Stage(Red(), 100), Stage(Red(), 5)], CurriculumConfig("auto", patience=1))
    photos = (0.1, 0.5, 0.3)
    rewards = [(0.0, "0.0"), (1.0, "0.0"), (-3.0, "0.1"), (-2.0, "0.1"), (-2.0, "0.1")]
    found = [curriculum.note(10 * i, [r + p for p in photos], version) for i, (r, version) in enumerate(rewards)]
    assert found == [False, False, False, False, True]
    other = Curriculum([Stage(Red(), 100), Stage(Red(), 5)], CurriculumConfig("auto", patience=1))
    other.load_state(curriculum.state())
    assert other.version == "0.1"


def test_the_last_stage_keeps_its_steps():
    curriculum = Curriculum([Stage(Red(), 10)], CurriculumConfig("auto", patience=1))
    assert [curriculum.note(step, [1.0, 1.0]) for step in (1, 2, 3)] == [False] * 3
    assert curriculum.steps == 10


def test_evidence():
    rising = [[0.0, 1.0, 2.0], [1.0, 2.1, 2.9], [2.0, 3.0, 4.0]]
    figures = {"gain": 2.0, "gain_error": 0.0, "whole_gain": 2.0}
    said = "over 2 measurements the reward rose by 2.0000 ± 0.0000"
    assert evidence(rising, 2, 0.2) == Evidence(False, f"{said}, of 2.0000 since the first", figures)
    assert evidence(rising[:2], 2, 0.2) == Evidence(False, "2 of the 3 measurements by one reward that it takes")
    slower = evidence([*rising, [2.1, 3.1, 4.1]], 1, 0.2)
    assert (slower.flat, slower.figures["gain"]) == (True, pytest.approx(0.1))
    assert slower.reason.endswith("rose by 0.1000 ± 0.0000, less than 0.2 of 2.1000 since the first")
    noise = [[0.0, 1.0, 2.0], [1.0, 0.1, 2.2]]  # up on the mean, by less than two standard errors
    found, change = evidence(noise, 1, 0.0), paired(*noise)
    assert change.mean > 0
    assert found.flat
    assert found.reason == "over 1 measurements the reward rose by 0.1000 ± 0.5508, within two standard errors of none"
    assert found.figures == {"gain": change.mean, "gain_error": change.error, "whole_gain": change.mean}


def test_paired():
    found = paired([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    assert found.mean == pytest.approx(1.0)
    assert found.error == pytest.approx((1 / 3) ** 0.5)  # the differences are 1, 0, 2
    assert not found.rose
    assert paired([0.0, 0.0], [1.0, 1.0]).rose
    assert paired([1.0, 1.0], [0.0, 0.0]).fell
    assert not paired([0.0], [1.0]).rose
    mostly = paired([0.0, 0.0, 0.0], [1.0, 0.0, 1.0])  # 2/3, which is two of its standard errors of 1/3
    assert (mostly.mean, mostly.error) == pytest.approx((2 / 3, 1 / 3))
    assert not paired([0.0, 0.0, 0.0], [1.0, 0.0, 0.9]).rose
    assert not paired([1.0, 1.0, 1.0], [0.0, 1.0, 0.1]).fell
    assert evidence([[0.0] * 3, [1.0, 0.0, 0.9]], 1, 0.0).flat


def test_nothing_to_do():
    with pytest.raises(ValueError, match="at least one, got none"):
        Curriculum([])
    with pytest.raises(ValueError, match="at least 1 step in a stage, got 0"):
        Stage(Red(), 0)
    with pytest.raises(ValueError, match=r"flat: expected 0 to below 1, got 1.0"):
        CurriculumConfig(flat=1.0)
    with pytest.raises(ValueError, match="switch: expected one of hard, blend, auto, got 'soft'"):
        CurriculumConfig("soft")


def test_a_short_stage_ends_a_rise_of_the_rate():
    """Of four steps the rate rises over half, and falls from there; a blend just ends where its stage does."""
    stages = [Stage(Given([1.0]), 2, 1.0), Stage(Given([3.0]), 4, 1.0)]
    curriculum = Curriculum(stages, CurriculumConfig("blend", blend_steps=100))
    assert [curriculum.at(step).blend for step in range(2, 6)] == [0.01, 0.02, 0.03, 0.04]
    curriculum = Curriculum(stages, CurriculumConfig(optimizer="rewarm", rewarm_steps=50))
    assert [curriculum.at(step).rate for step in range(2, 6)] == pytest.approx([0.5, 1, 1, 0.5])
