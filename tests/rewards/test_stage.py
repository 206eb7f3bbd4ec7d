"""R_k = λ1·S + λ2·(1 - max̂(M)), by value."""

import math

import pytest
import torch

from finpercep.models import RewardOutput
from finpercep.rewards import StageReward
from tests.rewards.conftest import Brightness


def test_worst_share(images):
    out = StageReward(Brightness(), 0.7, 0.2, fraction=0.05)(images)
    worst = images[:, 0].flatten(1).sort(1, descending=True).values[:, :10].mean(1)  # 5 % of 200 pixels
    expected = 0.7 * images.flatten(1).mean(1) + 0.2 * (1 - worst)
    torch.testing.assert_close(out.score, expected)
    assert out.map is not None
    assert torch.equal(out.map, images[:, :1])


def test_max_and_soft(images):
    hard = StageReward(Brightness(), 0, 1, maximum="max")(images).score
    torch.testing.assert_close(hard, 1 - images[:, 0].flatten(1).amax(1))
    soft = StageReward(Brightness(), 0, 1, maximum="soft", temperature=0.1)(images).score
    pixels = images[:, 0].flatten(1).double()
    expected = 1 - 0.1 * ((pixels / 0.1).exp().mean(1)).log()
    torch.testing.assert_close(soft.double(), expected, atol=1e-6, rtol=0)
    close = StageReward(Brightness(), 0, 1, maximum="soft", temperature=1e-4)(images).score
    assert (close - hard).abs().max() <= 1e-4 * math.log(
        200
    ) + 1e-6  # log-mean-exp is at most T·log N below the maximum


@pytest.mark.parametrize("maximum", ["worst", "max", "soft"])
def test_maps_in_half_precision_are_reduced_in_single(maximum):
    """1 - 1/1024 is a number of float32; in bfloat16 it would be 1."""

    class Half(Brightness):
        def forward(self, images, **context):
            faults = torch.full_like(images[:, :1], 2**-10, dtype=torch.bfloat16)
            return RewardOutput(torch.zeros(len(images)), faults)

    found = StageReward(Half(), 0, 1, maximum=maximum)(torch.zeros(2, 3, 8, 8)).score
    torch.testing.assert_close(found, torch.full((2,), 1 - 2**-10), atol=1e-6, rtol=0)


def test_the_hottest_soft_maximum_is_the_mean(images):
    mean = 1 - images[:, 0].flatten(1).mean(1)
    soft = StageReward(Brightness(), 0, 1, maximum="soft", temperature=1e6)(images).score
    torch.testing.assert_close(soft, mean, atol=1e-6, rtol=0)


def test_soft_reaches_every_pixel_and_max_one(images):
    for maximum, reached in (("soft", 600), ("max", 3), ("worst", 6)):
        x = images.clone().requires_grad_()
        StageReward(Brightness(), 0, 1, maximum=maximum, temperature=1.0)(x).score.sum().backward()
        assert int((x.grad[:, 0] != 0).sum()) == reached, maximum


def test_without_a_map_it_is_the_score(images):
    out = StageReward(Brightness(with_map=False), 0.3, 0.7)(images)
    torch.testing.assert_close(out.score, images.flatten(1).mean(1))
    assert out.map is None
    model = Brightness()
    assert not StageReward(model).without_map  # it does not say, and may have one
    model.has_map = False
    assert StageReward(model).without_map


def test_context_goes_through(images):
    inner = Brightness()
    reward = StageReward(inner)
    assert reward.takes == ("lr",)
    reward(images, lr=images, prompts=["x"] * 3)
    assert inner.given == ["lr"]


def test_fingerprint_names_reward_and_weights():
    prints = {StageReward(Brightness(), 0.5, w).fingerprint for w in (0.1, 0.2)}
    assert len(prints) == 2
    assert StageReward(Brightness(), 0.5, 0.1).fingerprint in prints
    assert StageReward(Brightness(), 1, 0).fingerprint == StageReward(Brightness(), 1.0, 0.0).fingerprint
    options = {"maximum": "worst", "fraction": 0.01, "temperature": 0.05}
    first = StageReward(Brightness(), 0.5, 0.5, **options).fingerprint
    assert StageReward(Brightness()).fingerprint == first
    others = [{"maximum": "soft"}, {"fraction": 0.02}, {"temperature": 0.1}]
    assert len({first, *(StageReward(Brightness(), **options | other).fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maximum": "most"}, "maximum: expected one of worst, max, soft, got 'most'"),
        ({"score_weight": 0, "map_weight": 0}, "not both 0"),
        ({"score_weight": -1}, "expected 0 or more"),
        ({"map_weight": math.nan}, "expected 0 or more"),
        ({"temperature": 0}, "temperature: expected more than 0"),
        ({"temperature": 1e14}, r"^temperature: expected more than 0 and at most 1e\+06, got 100000000000000.0"),
        ({"temperature": math.inf}, "temperature: expected .*, got inf"),
        ({"fraction": 0}, "fraction"),
        ({"fraction": 1.5}, "fraction: expected more than 0 and at most 1, got 1.5"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        StageReward(Brightness(), **options)
