"""What the settings name: rewards of stages, and the judge."""

from __future__ import annotations

import pytest
import torch

from finpercep import ops
from finpercep.models import RewardOutput
from finpercep.rewards import Mixture, StageReward
from finpercep.rl import build
from finpercep.rl.build import build_curriculum, build_judge, load_rewards
from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.curriculum import CurriculumConfig
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.scores import group_advantages, scores_and_map
from tests.rl.toy import Green, Red, batch


class Faint(Red):
    """A hundredth of how blue: what is added to it plainly drowns it."""

    fingerprint = "faint"

    def __call__(self, images):
        return RewardOutput(0.01 * images[:, 2].flatten(1).mean(1), None)


def test_a_mixture_is_normalized_by_parts():
    """Each part's R_k in its groups, then added; in a blend, too."""
    mixture = Mixture({"green": (Green(), 1.0), "faint": (Faint(), 2.0)})
    stages = (StageConfig("red", 2), StageConfig("mixture", 9, score_weight=0.7, map_weight=0.3))
    options = CurriculumConfig("blend", blend_steps=4)
    curriculum = build_curriculum(RLConfig(stages=stages, curriculum=options), {"red": Red(), "mixture": mixture})
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    given = batch(1).repeat(4)
    reward = curriculum.at(8).reward
    scores, _ = scores_and_map(reward, images, given)
    assert sorted(scores) == ["avg", "faint", "green"]
    found, _ = group_advantages(reward, scores, given.ids, 9.0)
    ids, rounded = torch.zeros(4, dtype=torch.long), (images * 255).round() / 255
    green = StageReward(Green(), 0.7, 0.3)(rounded).score
    parts = [ops.group_advantage(values, group_ids=ids)[0] for values in (green, Faint()(rounded).score)]
    torch.testing.assert_close(found, parts[0] + 2 * parts[1])
    blended = curriculum.at(2).reward
    assert blended.weights == {"before": 0.75, "stage_green": 0.25, "stage_faint": 0.5}


def test_a_stage_has_the_maximum_that_it_names():
    soft = StageConfig("green", 2, maximum="soft", temperature=0.3)
    worst = StageConfig("green", 2, fraction=0.5)
    curriculum = build_curriculum(RLConfig(stages=(soft, worst)), {"green": Green()})
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = (StageReward(Green(), maximum="soft", temperature=0.3), StageReward(Green(), fraction=0.5))
    for step, reward in zip((0, 2), expected, strict=True):
        assert torch.equal(curriculum.at(step).reward(images).score, reward(images).score)
    with pytest.raises(ValueError, match="maximum: expected one of worst, max, soft, got 'mean'"):
        build_curriculum(RLConfig(stages=(StageConfig("green", 2, maximum="mean"),)), {"green": Green()})


def test_the_judge_is_not_climbed_under_another_name(monkeypatch):
    monkeypatch.setattr(build, "load_reward", lambda name, device: Faint())
    config = RLConfig(monitors=MonitorConfig(judge="copy"))
    around = StageReward(Mixture({"red": (Red(), 1.0), "faint": (Faint(), 1.0)}))
    for climbed in (Faint(), around):
        assert build_judge(config, {"climbed": climbed}) is None
    assert build_judge(config, {"climbed": Red()}).reward.fingerprint == "faint"


def test_rewards_are_loaded_in_the_order_of_the_stages(monkeypatch):
    """Not in that of a set, which differs between processes: two that draw their weights would change places."""
    loaded = []
    monkeypatch.setattr(build, "load_reward", lambda name, device: loaded.append(name) or name)
    names = [f"reward-{number % 7}" for number in range(20)]
    load_rewards(RLConfig(stages=tuple(map(StageConfig, names))))
    assert loaded == names[:7]
