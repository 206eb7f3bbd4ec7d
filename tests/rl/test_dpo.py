"""Diffusion-DPO: Eq. 3 against diffusers' formula, by finite differences, and its pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from finpercep.models import RewardOutput
from finpercep.rewards import Mixture
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import Steps
from finpercep.rl.dpo import DPO, DPOConfig
from tests.rl.toy import Given, Red, Toy, batch, check_gradient

ONE_IS_BEST = ([0.9, 0.1, 0.2] * 2, [0.1, 0.9, 0.2] * 2, [0.1, 0.2, 0.9] * 2)
CONFIG = DPOConfig(steps=3, group_size=3, beta=5.0)


def diffusers_dpo(model, reference, rows, condition, beta, epsilon_error):
    """diffusers' train_diffusion_dpo: winners first, losers behind them, the mean over pixels, then the sigmoid."""
    x0 = torch.cat([rows["win"], rows["lose"]])
    noise, s = rows["epsilon"].repeat(2, 1, 1, 1), rows["s"].repeat(2)
    level = s.view(-1, 1, 1, 1)
    x = (1 - level) * x0 + level * noise
    losses = []
    for network in (model, reference):
        v = network.velocity(x, s, condition.repeat(2, 1, 1, 1))
        if epsilon_error:
            predicted, target = x + (1 - level) * v, noise
        else:
            predicted, target = v, noise - x0
        losses.append(F.mse_loss(predicted, target, reduction="none").mean((1, 2, 3)).chunk(2))
    (win, lose), (win_reference, lose_reference) = losses
    inside = -0.5 * beta * ((win - lose) - (win_reference - lose_reference))
    return -F.logsigmoid(inside).mean(), (inside > 0).double().mean()


@pytest.mark.parametrize("error", ["velocity", "epsilon"])
def test_against_diffusers(error):
    generator = Toy()
    algorithm = DPO(generator, replace(CONFIG, error=error))
    experience = algorithm.collect(batch(), Red(), 0)
    generator.move(0.2)
    terms = algorithm.loss(experience)
    condition = generator.condition(experience.batch)
    loss, accuracy = diffusers_dpo(
        generator, generator.reference[0], experience.tensors, condition, 5.0, error == "epsilon"
    )
    torch.testing.assert_close(terms["loss"], loss)
    assert float(terms["implicit_acc"]) == float(accuracy)


def test_gradient():
    generator = Toy()
    algorithm = DPO(generator, CONFIG)
    experience = algorithm.collect(batch(), Red(), 0)
    generator.move()
    check_gradient(generator, lambda: algorithm.loss(experience)["loss"])


def test_the_mean_is_outside_of_the_sigmoid():
    """Two pairs that the model has moved apart by very different amounts."""
    generator = Toy()
    algorithm = DPO(generator, replace(CONFIG, beta=500.0))
    experience = algorithm.collect(batch(), Red(), 0)
    generator.move(0.2)
    each = [float(algorithm.loss(part)["loss"].detach()) for part in experience.parts(1)]
    assert abs(each[0] - each[1]) > 0.1
    assert float(algorithm.loss(experience)["loss"].detach()) == pytest.approx(sum(each) / 2)


def test_before_training_the_loss_is_log_two():
    algorithm = DPO(Toy(), CONFIG)
    terms = algorithm.loss(algorithm.collect(batch(), Red(), 0))
    assert float(terms["loss"].detach()) == pytest.approx(0.6931471805599453)
    assert float(terms["implicit_acc"]) == 0  # no pair is ordered yet


def test_pairs():
    """Best and worst of each image; ties are dropped."""
    algorithm = DPO(Toy(), CONFIG)
    red = algorithm.collect(batch(), Red(), 0).tensors
    win, lose = (torch.sigmoid(red[name])[:, 0].mean((1, 2)) for name in ("win", "lose"))
    assert (win > lose).all()
    everything = algorithm.collect(batch(), Given([0.3, 0.9, 0.1, 0.2, 0.7, 0.8]), 0).tensors
    some = algorithm.collect(batch(), Given([0.5, 0.5, 0.5, 0.2, 0.7, 0.8]), 0)
    assert some.batch.ids.tolist() == [8]
    assert torch.equal(some.tensors["win"][0], everything["win"][1])
    assert torch.equal(some.tensors["lose"][0], everything["lose"][1])
    assert float(some.figures["zero_std_ratio"]) == 0.5
    assert float(some.figures["reward_gap"]) == pytest.approx((0 + 0.6) / 2)
    turned = algorithm.collect(batch(), Given([0.3, 0.1, 0.9, 0.2, 0.7, 0.8]), 0).tensors
    assert torch.equal(turned["win"][0], everything["lose"][0])
    with pytest.raises(ValueError, match="all 2 images have equal rewards for all their results"):
        algorithm.collect(batch(), Given([0.5] * 6), 0)


def test_a_pair_put_together_by_the_map():
    """At each position the best and the worst of the group: by the map alone where its weight is large, by the score
    where it is next to nothing."""

    class Banded(Given):
        """Scores that are given; result 0 of each image is faultless in the upper half, result 2 in the lower."""

        def __call__(self, images):
            maps = torch.full((len(images), 1, 6, 6), 0.5, dtype=images.dtype)
            maps[0::3, :, :3], maps[2::3, :, 3:] = 0.1, 0.1
            maps[2::3, :, :3], maps[0::3, :, 3:] = 0.9, 0.9
            return RewardOutput(super().__call__(images).score, maps)

    reward = Banded([0.3, 0.9, 0.1, 0.2, 0.7, 0.8])
    x0 = torch.stack([DPO(Toy(), CONFIG).collect(batch(), Given(one), 0).tensors["win"] for one in ONE_IS_BEST])
    found = DPO(Toy(), replace(CONFIG, map_weight=100.0)).collect(batch(), reward, 0).tensors
    upper, lower = found["win"][..., :3, :], found["win"][..., 3:, :]
    assert torch.equal(upper, x0[0][..., :3, :])
    assert torch.equal(lower, x0[2][..., 3:, :])
    assert torch.equal(found["lose"][..., :3, :], x0[2][..., :3, :])
    assert torch.equal(found["lose"][..., 3:, :], x0[0][..., 3:, :])
    plain = DPO(Toy(), CONFIG).collect(batch(), reward, 0).tensors
    little = DPO(Toy(), replace(CONFIG, map_weight=1e-9)).collect(batch(), reward, 0).tensors
    for name in ("win", "lose"):
        assert torch.equal(little[name], plain[name])
    some = DPO(Toy(), replace(CONFIG, map_weight=1.0)).collect(batch(), Banded([0.5] * 3 + [0.2, 0.7, 0.8]), 0)
    assert some.batch.ids.tolist() == [8]
    with pytest.raises(ValueError, match="map_weight: expected a reward with a map, got Red without"):
        DPO(Toy(), replace(CONFIG, map_weight=1.0)).collect(batch(), Red(), 0)


def test_rounding_is_no_preference():
    scores = [0.5, 0.5 + 2**-52, 0.5, 0.2, 0.7, 0.8]  # the images are float64
    assert DPO(Toy(), CONFIG).collect(batch(), Given(scores), 0).batch.ids.tolist() == [8]
    for level in (-0.5, 0.0):  # nor are equal scores below 0, or of 0
        found = DPO(Toy(), CONFIG).collect(batch(), Given([level] * 3 + [-0.2, -0.7, -0.8]), 0)
        assert found.batch.ids.tolist() == [8]
        assert float(found.figures["zero_std_ratio"]) == 0.5


def test_a_blend_ranks_by_rewards_that_are_normalized_in_their_group():
    """The former reward varies ten times as much: of the plain sum, result 2 would be the best and 0 the worst."""
    scores = {"before": (Given([0.1, 0.2, 0.3] * 2), 0.3), "stage": (Given([0.59, 0.60, 0.58] * 2), 0.7)}
    algorithm = DPO(Toy(), CONFIG)
    found = algorithm.collect(batch(), Mixture(scores), 0).tensors
    expected = algorithm.collect(batch(), Given([0.5, 0.9, 0.1] * 2), 0).tensors
    for name in ("win", "lose"):
        assert torch.equal(found[name], expected[name])


def test_draws_are_those_of_the_image():
    algorithm = DPO(Toy(), CONFIG)
    both, alone = (algorithm.collect(given, Red(), 4).tensors for given in (batch(2), batch(2)[1:]))
    for name in ("s", "epsilon", "win"):
        torch.testing.assert_close(both[name][1:], alone[name])
    assert both["s"][0] != both["s"][1]
    later = algorithm.collect(batch(2), Red(), 5).tensors
    assert not set(later["s"].tolist()) & set(both["s"].tolist())


def test_no_level_lies_above_the_sampler_s_first():
    generator = Toy()
    even = generator.steps
    generator.steps = lambda count: Steps(tuple(s / 2 for s in even(count).s), even(count).timesteps)
    many = Batch(torch.rand(100, 3, 4, 4, dtype=torch.float64), torch.arange(100))
    s = DPO(generator, replace(CONFIG, levels="uniform"))._noise(many, torch.zeros(100, 3, 8, 8), 0)["s"]
    assert 0.45 < float(s.max()) <= 0.5


def test_given_pairs():
    """Chosen and rejected as they are, encoded; the reward is not asked."""
    generator, given = Toy(), batch()
    better, worse = given.photo, 1 - given.photo
    algorithm = DPO(generator, replace(CONFIG, pairs="given"))
    rows = algorithm.collect(given.with_extras({"chosen": better, "rejected": worse}), Given([]), 0).tensors
    torch.testing.assert_close(rows["win"], torch.logit(better, 0.01))
    torch.testing.assert_close(rows["lose"], torch.logit(worse, 0.01))
    with pytest.raises(ValueError, match="pairs: expected rejected beside every low-resolution image, got none"):
        algorithm.collect(given.with_extras({"chosen": better}), Given([]), 0)


def test_the_error_is_of_what_the_model_predicts():
    generator = Toy()
    assert DPO(generator, CONFIG).error == "velocity"
    for kind in ("epsilon", "sample", "v_prediction"):
        generator.kind = kind  # as a UNet whose scheduler says so
        assert DPO(generator, CONFIG).error == kind
    assert DPO(generator, replace(CONFIG, error="velocity")).error == "velocity"


def test_levels_are_those_of_the_sampler_for_unets():
    """Toy's steps are even; with levels² they are denser below: half of them lie below a quarter."""
    generator = Toy()
    even = generator.steps
    generator.steps = lambda count: Steps(tuple(s**2 for s in even(count).s), even(count).timesteps)
    many = Batch(torch.rand(400, 3, 4, 4, dtype=torch.float64), torch.arange(400))

    def below(levels):
        algorithm = DPO(generator, replace(CONFIG, levels=levels))
        return float((algorithm._noise(many, torch.zeros(400, 3, 8, 8), 0)["s"] < 0.25).double().mean())

    assert below("sampler") == pytest.approx(0.5, abs=0.08)
    assert below("uniform") == pytest.approx(0.25, abs=0.08)
    assert DPO(generator, CONFIG).levels == "uniform"
    generator.kind = "v_prediction"
    assert DPO(generator, CONFIG).levels == "sampler"


def test_options():
    with pytest.raises(ValueError, match="group_size: expected 2 or more"):
        DPOConfig(group_size=1)
    with pytest.raises(ValueError, match="error: expected one of auto, velocity, epsilon"):
        DPOConfig(error="x0")
    with pytest.raises(ValueError, match="levels: expected one of auto, uniform, sampler, got 'even'"):
        DPOConfig(levels="even")
    with pytest.raises(ValueError, match="pairs: expected one of reward, given, got 'offline'"):
        DPOConfig(pairs="offline")
    with pytest.raises(ValueError, match="map_weight: expected 0 or more, got -1"):
        DPOConfig(map_weight=-1)
    with pytest.raises(ValueError, match="map_weight: expected pairs reward with spatial credit, got given ones"):
        DPOConfig(map_weight=1.0, pairs="given")
