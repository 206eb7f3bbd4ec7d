"""Mixtures: sums, and advantages that are normalized reward by reward."""

import copy

import pytest
import torch

from finpercep.engine import Scorer
from finpercep.models import RewardOutput
from finpercep.models.evaluation_view import evaluation_view
from finpercep.rewards import Augmented, LRConsistency, Mixture, StageReward
from tests.rewards.conftest import Brightness


def test_weighted_sum_and_map(images):
    lr = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)
    mixture = Mixture({"lr": (LRConsistency(), 2.0), "bright": (Brightness(), 0.5)})
    out = mixture(images, lr=lr)
    torch.testing.assert_close(out.score, 2.0 + 0.5 * images.flatten(1).mean(1))  # exactly consistent: 1
    assert torch.equal(out.map, images[:, :1])
    assert mixture.takes == ("lr",)


def test_the_map_is_that_of_the_last_part_with_one(images):
    class Negative(Brightness):
        def forward(self, images, **context):
            return RewardOutput(images.flatten(1).mean(1), -images[:, :1])

    parts = {"one": (Negative(), 1.0), "two": (Brightness(), 1.0), "three": (Brightness(with_map=False), 1.0)}
    assert torch.equal(Mixture(parts)(images).map, images[:, :1])
    assert Mixture({"three": parts["three"]})(images).map is None


def test_parts_in_training_are_seen_in_evaluation():
    class Noisy(torch.nn.Module):
        fingerprint = "noisy"

        def __init__(self):
            super().__init__()
            self.weight, self.drop = torch.nn.Parameter(torch.ones(1)), torch.nn.Dropout(0.5)

        def forward(self, images):
            return RewardOutput((self.drop(torch.ones(len(images), 64)) * self.weight).mean(1), None)

    class Plain:
        fingerprint = "plain"

        def __call__(self, images):
            return RewardOutput(torch.ones(len(images)), None)

    noisy = Noisy().train()
    mixture = Mixture({"b.1": (noisy, 2.0), "plain": (Plain(), 1.0), "a": (noisy, 0.5)})
    assert list(mixture.parts) == ["b.1", "plain", "a"]  # in the order that was given, whatever the names
    assert mixture.parts["a"] is mixture.parts["b.1"] is noisy
    assert len(list(mixture.parameters())) == 1
    assert evaluation_view(mixture)(torch.zeros(4, 3, 2, 2)).score.tolist() == [3.5] * 4
    assert noisy.training
    copied = copy.deepcopy(mixture)
    assert copied.parts["a"] is copied.parts["b.1"] is not noisy
    assert list(copied.state_dict()) == list(mixture.state_dict())


def test_each_reward_is_normalized_before_they_are_added():
    mixture = Mixture({"small": (Brightness(), 1.0), "large": (Brightness(), 3.0)})
    small = torch.tensor([0.1, 0.2, 0.3, 5.0, 5.0, 8.0], dtype=torch.float64)
    large = torch.tensor([300.0, 200.0, 100.0, -1.0, 0.0, 1.0], dtype=torch.float64)
    total, stats = mixture.advantages({"small": small, "large": large}, group_size=3, eps=1e-12)
    with pytest.raises(TypeError, match="scores: expected them by part, see `outputs`, got Tensor"):
        mixture.advantages(small, group_size=3)

    def normal(x):
        x = x.view(2, 3)
        return ((x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)).flatten()

    torch.testing.assert_close(total.double(), normal(small) + 3 * normal(large), atol=1e-5, rtol=1e-5)
    assert set(stats) == {"small", "large"}
    # A plain sum would follow the large one alone; here the small one decides where the weights say so.
    again, _ = Mixture({"small": (Brightness(), 3.0), "large": (Brightness(), 1.0)}).advantages(
        {"small": small, "large": large}, group_size=3, eps=1e-12
    )
    assert again[2] > again[0]
    assert total[2] < total[0]


def test_what_one_reward_cannot_tell_leaves_the_others_word():
    """Groups that are dead to a part, its values that are no numbers, and groups of one."""
    mixture = Mixture({"a": (Brightness(), 1.0), "b": (Brightness(), 2.0)})
    a = torch.tensor([0.1, 0.2, torch.nan, 0.5, 0.5, 0.5, 1, 2, 3], dtype=torch.float64)
    b = torch.tensor([1, 1, 1, 1, 2, 3, torch.nan, torch.nan, torch.nan], dtype=torch.float64)
    total, stats = mixture.advantages({"a": a, "b": b}, group_size=3, eps=1e-12)
    three = 1.5**0.5
    expected = torch.tensor([-1, 1, 0, -2 * three, 0, 2 * three, -three, 0, three])
    torch.testing.assert_close(total.float(), expected, atol=1e-5, rtol=0)
    assert [int(stats["a"].zero_variance), int(stats["b"].zero_variance)] == [1, 1]
    assert [int(stats["a"].non_finite), int(stats["b"].non_finite), int(stats["b"].single)] == [1, 3, 1]
    alone, stats = mixture.advantages({"a": a, "b": b}, group_size=1)
    assert torch.equal(alone, torch.zeros_like(alone))
    assert int(stats["a"].single) == 9


def test_fingerprint_changes_with_a_weight():
    one, two = (Mixture({"a": (Brightness(), w)}).fingerprint for w in (1.0, 2.0))
    assert one != two


def test_fingerprint_changes_with_the_order_which_decides_whose_map_it_is():
    parts = {"a": (Brightness(), 1.0), "b": (Brightness(with_map=False), 1.0)}
    assert Mixture(parts).fingerprint != Mixture(dict(reversed(parts.items()))).fingerprint


def test_errors():
    class Lower(Brightness):
        lower_better = True

    with pytest.raises(ValueError, match=r"parts\['a'\]: expected a reward, got 'finpercep-tiny'; load_reward makes"):
        Mixture({"a": ("finpercep-tiny", 1.0)})
    with pytest.raises(ValueError, match=r"parts\['a'\]: expected a positive weight, got inf"):
        Mixture({"a": (Brightness(), float("inf"))})
    with pytest.raises(ValueError, match="reward: expected a reward, got 'finpercep-tiny'"):
        StageReward("finpercep-tiny")
    with pytest.raises(ValueError, match="at least one reward"):
        Mixture({})
    with pytest.raises(ValueError, match="parts: expected names other than avg"):
        Mixture({"avg": (Brightness(), 1)})
    with pytest.raises(ValueError, match=r"parts\['a'\]: expected a positive weight, got 0"):
        Mixture({"a": (Brightness(), 0)})
    with pytest.raises(ValueError, match=r"parts\['b'\].*lower ones are"):
        Mixture({"a": (Brightness(), 1), "b": (Lower(), 1)})
    with pytest.raises(ValueError, match=r"expected those of \['a'\], got \['b'\]"):
        Mixture({"a": (Brightness(), 1)}).advantages({"b": torch.zeros(2)}, group_size=2)
    both = Mixture({"a": (Brightness(), 1), "b": (Brightness(), 1)})
    with pytest.raises(ValueError, match=r"^scores: expected as many of every part, got {'a': 4, 'b': 2}$"):
        both.advantages({"a": torch.zeros(4), "b": torch.zeros(2)}, group_size=2)
    with pytest.raises(ValueError, match=r"expected those of \['a', 'b'\], got \['a'\]"):  # not the sum of one
        Mixture({"a": (Brightness(), 1), "b": (Brightness(), 1)}).advantages({"a": torch.zeros(2)}, group_size=2)


@pytest.mark.parametrize("around", [StageReward, Augmented, Scorer])
def test_what_is_around_a_reward_does_not_hide_that_lower_scores_are_better(around):
    """A metric as pyiqa makes it: climbed, it would make images worse."""

    class Metric(torch.nn.Module):
        lower_better, fingerprint = True, "metric"

        def forward(self, images):
            return RewardOutput(images.flatten(1).mean(1), None)

    with pytest.raises(ValueError, match=r"^reward: expected a reward whose higher .*, but lower ones are; negate it"):
        around(Metric())
