"""ReFL: Eq. 1 and 2 by value and by finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from finpercep.models import RewardOutput
from finpercep.rl import scores
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import mix, preserving
from finpercep.rl.generators.flow_matching import draw_level, flow_matching_loss
from finpercep.rl.refl import ReFL, ReFLConfig
from finpercep.rl.rollout import initial_noise, sample_generators
from tests.rl.toy import Given, Red, Toy, batch, check_gradient


@pytest.fixture
def exact_images(monkeypatch):
    """Without the rounding to 8 bits, whose steps finite differences would see."""
    monkeypatch.setattr(scores, "as_file", lambda images: images)


@pytest.mark.parametrize("last", [1, 2, 3])
@pytest.mark.parametrize("weighting", ["relu", "identity"])
def test_gradient(exact_images, weighting, last):
    """Through the last K steps, as DRaFT-K has it."""
    generator = Toy()
    algorithm = ReFL(generator, ReFLConfig(weighting=weighting, weight=30.0, late=1, last=last))
    experience = algorithm.collect(batch(), Red(), 0)
    check_gradient(generator, lambda: algorithm.loss(experience)["loss"])


def test_value(exact_images):
    """One image, written out: λ·relu(c - R(D(x - s·v))) + |v - (ε - x0)|²."""
    generator, given = Toy(), batch()
    algorithm = ReFL(generator, ReFLConfig(steps=5, weight=2.0, target=0.7))
    experience = algorithm.collect(given, Red(), 3)
    x, s = experience.tensors["x"], float(experience.tensors["s"][0])
    assert s in (pytest.approx(0.4), pytest.approx(0.2))  # one of the last two of five steps
    terms = algorithm.loss(experience)
    condition = generator.condition(given)
    image = torch.sigmoid(x - s * generator.velocity(x, torch.tensor([s, s]), condition))
    policy = torch.relu(0.7 - image[:, 0].flatten(1).mean(1)).mean()
    torch.testing.assert_close(terms["policy_loss"], policy)

    draws = [torch.Generator().manual_seed(seed) for seed in experience.tensors["seed"].tolist()]
    at = 64 * torch.cat([torch.rand(1, generator=draw, dtype=torch.float64) for draw in draws])
    epsilon = torch.stack([torch.randn(3, 6, 6, generator=draw, dtype=torch.float64) for draw in draws])
    level, x0 = 1 - at / 64, torch.logit(given.photo, 0.01)
    noisy = (1 - level.view(2, 1, 1, 1)) * x0 + level.view(2, 1, 1, 1) * epsilon
    pretrain = (generator.velocity(noisy, level, condition) - epsilon + x0).square().mean()
    torch.testing.assert_close(terms["pretrain_loss"], pretrain)
    torch.testing.assert_close(terms["loss"], 2 * policy + pretrain)


def test_through_the_whole_sampler(exact_images):
    """K = steps: the loss is that of the result of the sampler, written out."""
    generator, given = Toy(), batch()
    algorithm = ReFL(generator, ReFLConfig(steps=3, late=1, last=3, weighting="identity", pretrain=False))
    loss = algorithm.loss(algorithm.collect(given, Red(), 1))["loss"]
    x = initial_noise(generator, given, sample_generators(given.ids, 0, "noise", 1)).requires_grad_()
    condition, after = generator.condition(given), x
    for s in (1, 2 / 3, 1 / 3):
        after = after - generator.velocity(after, torch.tensor([s, s]), condition) / 3
    torch.testing.assert_close(loss, -torch.sigmoid(after)[:, 0].mean())
    one = ReFL(generator, ReFLConfig(steps=3, late=1, weighting="identity", pretrain=False))
    same = one.loss(one.collect(given, Red(), 1))["loss"]
    torch.testing.assert_close(same, loss)  # the same value, but another gradient
    gradients = [torch.autograd.grad(value, generator.first.weight)[0] for value in (loss, same)]
    assert (gradients[0] - gradients[1]).abs().max() > 0.01 * gradients[1].abs().max()


class Mapped(Red):
    """Red, with a map that is 0 on the left half and 0.5 on the right one."""

    def __call__(self, images):
        faults = torch.zeros_like(images[:, :1])
        faults[..., images.shape[-1] // 2 :] = 0.5
        return RewardOutput(super().__call__(images).score, faults)


def test_the_map_weighs_the_gradient(exact_images):
    """M/mean(M) is 0 on the left and 2 on the right: the gradient at γ is (1 - γ) and (1 + γ) times that at 0."""
    generator, given = Toy(), batch()

    def gradients(weight):
        config = ReFLConfig(map_weight=weight, weighting="identity", pretrain=False)
        algorithm = ReFL(generator, config)
        seen = []
        decode = generator.decode
        generator.decode = lambda x0, condition: watched(decode(x0, condition), seen)
        terms = algorithm.loss(algorithm.collect(given, Mapped(), 0))
        terms["loss"].backward()
        del generator.decode
        return terms["loss"].detach(), seen[0]

    (plain, at_0), (same, at_3) = gradients(0.0), gradients(0.3)
    assert torch.equal(plain, same)
    expected = at_0 * torch.tensor([0.7, 0.7, 0.7, 1.3, 1.3, 1.3], dtype=torch.float64)
    torch.testing.assert_close(at_3, expected)
    algorithm = ReFL(generator, ReFLConfig(map_weight=0.3))
    with pytest.raises(ValueError, match="map_weight: expected a reward with a map, got Red without"):
        algorithm.loss(algorithm.collect(given, Red(), 0))


def watched(images, seen):
    images.register_hook(seen.append)
    return images


def test_draws_are_those_of_the_image(exact_images):
    """The loss of two images is the mean of the losses of each alone: levels and noise do not depend on the batch."""
    algorithm, given = ReFL(Toy(), ReFLConfig()), batch()
    both = algorithm.loss(algorithm.collect(given, Red(), 4))
    alone = [algorithm.loss(algorithm.collect(given[i : i + 1], Red(), 4)) for i in range(2)]
    for name in ("policy_loss", "pretrain_loss"):
        torch.testing.assert_close(both[name], (alone[0][name] + alone[1][name]) / 2)
    assert abs(float(alone[0]["pretrain_loss"] - alone[1]["pretrain_loss"])) > 1e-3
    seeds = [seed for step in (4, 5) for seed in algorithm.collect(given, Red(), step).tensors["seed"].tolist()]
    assert len(set(seeds)) == 4


def test_above_the_target_a_reward_is_good_enough(exact_images):
    algorithm = ReFL(Toy(), ReFLConfig(target=-1.0, pretrain=False))
    terms = algorithm.loss(algorithm.collect(batch(), Red(), 0))
    assert (float(terms["loss"].detach()), float(terms["policy_loss"].detach())) == (0, 0)


def test_a_map_without_faults_takes_the_same_off_everywhere(exact_images):
    """0/mean(0) counts as 0: the gradient at γ = 0.3 is 0.7 of that at 0."""

    class Clean(Red):
        def __call__(self, images):
            return RewardOutput(super().__call__(images).score, torch.zeros_like(images[:, :1]))

    found = []
    for weight in (0.0, 0.3):
        generator = Toy()
        algorithm = ReFL(generator, ReFLConfig(map_weight=weight, weighting="identity", pretrain=False))
        algorithm.loss(algorithm.collect(batch(), Clean(), 0))["loss"].backward()
        found.append([p.grad for p in generator.parameters()])
    for plain, weighted in zip(*found, strict=True):
        torch.testing.assert_close(weighted, 0.7 * plain)


def test_a_reward_that_is_not_finite_is_looked_at():
    class Bad(Red):
        def __call__(self, images):
            output = super().__call__(images)
            return output._replace(score=output.score * torch.tensor([1.0, math.nan]))

    algorithm = ReFL(Toy(), ReFLConfig())
    experience = algorithm.collect(batch(), Bad(), 0)
    algorithm.loss(experience)
    with pytest.raises(FloatingPointError, match="expected finite scores, got nan for image 8"):
        experience.looks[0]()


def test_late_steps_alone_are_drawn():
    algorithm = ReFL(Toy(), ReFLConfig(steps=8, late=3))
    drawn = {float(algorithm.collect(batch(), Red(), step).tensors["s"][0]) for step in range(40)}
    assert sorted(drawn) == pytest.approx([1 / 8, 2 / 8, 3 / 8])


def test_levels_follow_the_sampler():
    generator, seed = Toy(), torch.Generator().manual_seed(0)
    drawn = torch.cat([draw_level(generator, seed) for _ in range(4000)])
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.02)
    assert 0 <= float(drawn.min()) < 0.01
    assert 0.99 < float(drawn.max()) <= 1


def test_rounding_lets_the_gradient_pass():
    image = torch.tensor([[[[0.1234, 0.9999]]]], requires_grad=True)
    rounded = scores.as_file(image)
    torch.testing.assert_close(rounded * 255, torch.tensor([[[[31.0, 255.0]]]]))
    rounded.sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))


def test_a_reward_without_gradient():
    algorithm = ReFL(Toy(), ReFLConfig())
    experience = algorithm.collect(batch(), Given([0.1, 0.2]), 0)
    with pytest.raises(ValueError, match=r"ReFL needs a reward with gradients to the pixels.*Given; use grpo"):
        algorithm.loss(experience)


def test_a_reward_of_the_wrong_shape():
    class Wrong:
        fingerprint = "wrong"

        def __call__(self, images):
            return RewardOutput(images.mean((2, 3)), None)

    algorithm = ReFL(Toy(), ReFLConfig())
    with pytest.raises(ValueError, match=r"expected scores \(2,\)"):
        algorithm.loss(algorithm.collect(batch(), Wrong(), 0))


def test_photos_of_some_rows(exact_images):
    """Those of the others, whatever stands there, teach nothing; the mean is over all rows."""
    given, losses = batch(3), []
    mixed = replace(given, photo=given.photo.clone(), has_photo=torch.tensor([True, False, True]))
    mixed.photo[1] = 0
    for some in (given, mixed):
        generator = Toy()
        algorithm = ReFL(generator, ReFLConfig(micro_batch=2))
        experience = algorithm.collect(some, Red(), 0)
        parts = list(experience.parts(2))
        losses.append([float(algorithm.loss(part)["pretrain_loss"].detach()) for part in experience.parts(1)])
        whole = float(algorithm.loss(experience)["pretrain_loss"].detach())
        assert whole == pytest.approx(sum(losses[-1]) / 3)
        by_parts = [float(algorithm.loss(part)["pretrain_loss"].detach()) * len(part) for part in parts]
        assert whole == pytest.approx(sum(by_parts) / 3)
    assert losses[1][1] == 0
    assert losses[1][::2] == losses[0][::2]
    assert min(losses[0]) > 0


def test_no_photos():
    given = batch()
    alone = type(given)(given.lr, given.ids)
    with pytest.raises(ValueError, match="pretrain: expected photos"):
        ReFL(Toy(), ReFLConfig()).collect(alone, Red(), 0)
    with pytest.raises(ValueError, match="batch: expected photos"):
        flow_matching_loss(Toy(), alone, [torch.Generator()] * 2)
    terms = ReFL(Toy(), ReFLConfig(pretrain=False))
    assert "pretrain_loss" not in terms.loss(terms.collect(alone, Red(), 0))


def test_options():
    with pytest.raises(ValueError, match="late: expected 1 to 3"):
        ReFLConfig(late=4)
    with pytest.raises(ValueError, match="last: expected 1 to 2, the steps up to the first one that is drawn, got 3"):
        ReFLConfig(last=3)
    with pytest.raises(ValueError, match="map_weight: expected 0 to 1, got 2"):
        ReFLConfig(map_weight=2)
    with pytest.raises(ValueError, match="weighting: expected one of relu, identity"):
        ReFLConfig(weighting="square")


@pytest.mark.parametrize("kind", ["", "epsilon", "sample", "v_prediction"])
def test_the_term_on_photos_is_of_what_the_model_predicts(kind):
    """Eq. 2's second term of a UNet, row by row at the levels and noises that are drawn."""
    generator = Toy()
    generator.kind = kind
    photos = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    given = Batch(torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.arange(2), photos)
    draws = [torch.Generator().manual_seed(row) for row in range(2)]
    found = flow_matching_loss(generator, given, draws)
    expected, x0 = [], generator.encode(photos, generator.condition(given))
    for row in range(2):
        draw = torch.Generator().manual_seed(row)
        s = draw_level(generator, draw)
        epsilon = torch.randn(x0.shape[1:], generator=draw, dtype=torch.float64)[None]
        one = generator.condition(given[row : row + 1])
        v = generator.velocity(mix(x0[row : row + 1], epsilon, s), s, one)
        clean = mix(x0[row : row + 1], epsilon, s) - s * v
        noise = clean + v
        alpha, sigma = preserving(s)
        errors = {
            "": v - (epsilon - x0[row]),
            "epsilon": noise - epsilon,
            "sample": clean - x0[row],
            "v_prediction": alpha * (noise - epsilon) - sigma * (clean - x0[row]),
        }
        expected.append(errors[kind].square().mean())
    torch.testing.assert_close(found, torch.stack(expected).mean())
