"""DiffusionNFT against its published loss, by finite differences, and in a case worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from finpercep import ops
from finpercep.rl.experience import DeadGroups, Experience
from finpercep.rl.nft import NFT, NFTConfig
from finpercep.rl.spatial import spatial_advantages
from tests.rl.toy import Given, Green, Red, Toy, batch, check_gradient

CONFIG = NFTConfig(steps=3, group_size=3, mix=0.4, advantage_clip=2.0, reference_weight=0.1)


def published(v, old, reference, rows, config):
    """DiffusionNFT's training loss, written out."""
    beta, x0, x = config.mix, rows["x0"], rows["x"]
    t = rows["s"].view(-1, 1, 1, 1)
    branches = []
    for mixed in (beta * v + (1 - beta) * old, (1 + beta) * old - beta * v):
        predicted = x - t * mixed
        with torch.no_grad():
            weight = (predicted.double() - x0.double()).abs().mean((1, 2, 3), keepdim=True).clip(min=1e-5)
        branches.append(((predicted - x0) ** 2 / weight).mean((1, 2, 3)))
    r = rows["share"]
    policy = (r * branches[0] / beta + (1 - r) * branches[1] / beta).mean() * config.advantage_clip
    return policy + config.reference_weight * ((v - reference) ** 2).mean()


def test_against_the_published_loss():
    generator = Toy()
    algorithm = NFT(generator, CONFIG)
    experience = algorithm.collect(batch(), Red(), 0)
    generator.move()
    rows = experience.tensors
    at = (rows["x"], rows["s"], generator.condition(experience.batch))
    expected = published(generator.velocity(*at), rows["old"], generator.reference_velocity(*at), rows, CONFIG)
    torch.testing.assert_close(algorithm.loss(experience)["loss"], expected)


def test_gradient():
    """At fixed widths of the branches, which have no gradient."""
    generator = Toy()
    algorithm = NFT(generator, CONFIG)
    experience = algorithm.collect(batch(), Red(), 0)
    generator.move()
    rows, condition = experience.tensors, generator.condition(experience.batch)
    level = rows["s"].view(-1, 1, 1, 1)

    def branches():
        v, old = generator.velocity(rows["x"], rows["s"], condition), rows["old"]
        mixed = (0.4 * v + 0.6 * old, 1.4 * old - 0.4 * v)
        return v, [rows["x"] - level * one - rows["x0"] for one in mixed]

    widths = [error.detach().abs().mean((1, 2, 3)) for error in branches()[1]]

    def fixed():
        v, errors = branches()
        plus, minus = (e.square().mean((1, 2, 3)) / w for e, w in zip(errors, widths, strict=True))
        policy = (rows["share"] * plus + (1 - rows["share"]) * minus).mean() * 2.0 / 0.4
        reference = generator.reference_velocity(rows["x"], rows["s"], condition)
        return policy + 0.1 * (v - reference).square().mean()

    check_gradient(generator, fixed)
    generator.zero_grad()
    fixed().backward()
    expected = [p.grad.clone() for p in generator.parameters()]
    generator.zero_grad()
    algorithm.loss(experience)["loss"].backward()
    for parameter, gradient in zip(generator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_by_hand():
    """One value: x0 = 1, s = 0.5, x = 0.5, v_old = 1, v = 2, β = 1: x̂0⁺ = -0.5, x̂0⁻ = 0.5; L⁺ = 1.5, L⁻ = 0.5."""

    class Two(Toy):
        def velocity(self, x, s, condition):
            return torch.full_like(x, 2.0)

    like = torch.ones(1, 3, 6, 6, dtype=torch.float64)
    rows = {"x0": like, "x": 0.5 * like, "s": like[:, 0, 0, 0] / 2, "old": like, "share": 0.9 * like[:, 0, 0, 0]}
    algorithm = NFT(Two(), NFTConfig(mix=1.0, advantage_clip=5.0))
    terms = algorithm.loss(Experience(batch(1), rows))
    assert float(terms["loss"]) == pytest.approx(5 * (0.9 * 1.5 + 0.1 * 0.5))
    assert float(terms["old_deviate"]) == 1.0


def test_a_branch_without_error_by_hand():
    """As below with v = -1: x̂0⁺ = 1 has no error, and divides by none; x̂0⁻ = -1 has L⁻ = 2."""

    class Right(Toy):
        def velocity(self, x, s, condition):
            return torch.full_like(x, -1.0)

    like = torch.ones(1, 3, 6, 6, dtype=torch.float64)
    rows = {"x0": like, "x": 0.5 * like, "s": like[:, 0, 0, 0] / 2, "old": like, "share": 0.9 * like[:, 0, 0, 0]}
    terms = NFT(Right(), NFTConfig(mix=1.0, advantage_clip=5.0)).loss(Experience(batch(1), rows))
    assert float(terms["loss"]) == pytest.approx(5 * 0.1 * 2)
    assert float(terms["old_deviate"]) == 4.0


def test_spatial_credit_by_hand():
    """As above, with r = 0.9 at the first position and 0.2 at the second."""
    like = torch.ones(1, 3, 1, 2, dtype=torch.float64)

    class Two(Toy):
        def velocity(self, x, s, condition):
            return torch.full_like(x, 2.0)

    share = torch.tensor([[0.9, 0.2]], dtype=torch.float64)
    rows = {"x0": like, "x": 0.5 * like, "s": like[:, 0, 0, 0] / 2, "old": like, "share": share}
    terms = NFT(Two(), NFTConfig(mix=1.0, advantage_clip=5.0, map_weight=1.0)).loss(Experience(batch(1), rows))
    assert float(terms["loss"]) == pytest.approx(5 * (0.9 * 1.5 + 0.1 * 0.5 + 0.2 * 1.5 + 0.8 * 0.5) / 2)


def test_spatial_credit_is_that_of_the_map():
    """r is ½ + A(p)/2c; a weight of next to nothing has the gradient of none."""
    given, gradients = batch(), []
    for reward, weight in ((Red(), 0.0), (Green(), 0.0), (Green(), 1e-12), (Green(), 0.7)):
        generator = Toy()
        algorithm = NFT(generator, replace(CONFIG, map_weight=weight))
        experience = algorithm.collect(given, reward, 0)
        generator.move()
        algorithm.loss(experience)["loss"].backward()
        gradients.append([p.grad for p in generator.parameters()])
    for a, b, c, d in zip(*gradients, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)
        assert not torch.allclose(a, d, rtol=0.01)
    rows = experience.tensors
    images = Toy().decode(rows["x0"], None)
    maps = (images.clamp(0, 1).float() * 255).round()[:, 1:2] / 255
    scores = (images.clamp(0, 1).float() * 255).round()[:, 0].flatten(1).mean(1) / 255
    scalar = ops.group_advantage(scores, group_size=3)[0]
    expected = 0.5 + spatial_advantages(scalar, maps, 3, (6, 6), 0.7).clamp(-2, 2) / 4
    torch.testing.assert_close(rows["share"], expected.double(), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="map_weight: expected a reward with a map, got Red without"):
        NFT(Toy(), replace(CONFIG, map_weight=1.0)).collect(batch(), Red(), 0)
    with pytest.raises(ValueError, match="map_weight: expected 0 or more, got -1"):
        NFTConfig(map_weight=-1)


def test_draws_are_those_of_the_image_and_sample():
    """Whatever else is in the batch: the rows of one image alone are those that it has among others."""
    algorithm = NFT(Toy(), CONFIG)
    both, alone = (algorithm.collect(given, Red(), 4).tensors for given in (batch(2), batch(2)[1:]))
    for name in ("s", "x", "x0"):
        torch.testing.assert_close(both[name][3:], alone[name])


def test_results_are_noised_anew_in_each_step():
    algorithm = NFT(Toy(), CONFIG)
    levels, noises = set(), []
    for step in range(8):
        rows = algorithm.collect(batch(), Red(), step).tensors
        levels |= set(rows["s"].tolist())
        s = rows["s"].view(-1, 1, 1, 1)
        noises.append((rows["x"] - (1 - s) * rows["x0"]) / s)
    assert sorted(levels) == pytest.approx([1 / 3, 2 / 3, 1])  # those of the sampler, its first too, and not the end
    assert (noises[0] - noises[1]).abs().flatten(1).mean(1).min() > 0.5


def test_dead_groups_are_left_out():
    algorithm = NFT(Toy(), replace(CONFIG, group_size=2))
    some = algorithm.collect(batch(), Given([0.5, 0.5, 0.2, 0.7]), 0)
    assert some.batch.ids.tolist() == [8, 8]
    everything = algorithm.collect(batch(), Given([0.4, 0.5, 0.2, 0.7]), 0).tensors
    assert torch.equal(some.tensors["x"], everything["x"][2:])
    assert float(some.figures["zero_std_ratio"]) == 0.5
    with pytest.raises(DeadGroups, match="all 2 groups have equal rewards"):
        algorithm.collect(batch(), Given([0.5] * 4), 0)


def test_dead_groups_are_kept_if_so_asked():
    kept = NFT(Toy(), replace(CONFIG, group_size=2, keep_dead=True))
    rows = kept.collect(batch(), Given([0.5, 0.5, 0.2, 0.7]), 0)
    assert rows.batch.ids.tolist() == [7, 7, 8, 8]
    assert rows.tensors["share"].tolist() == pytest.approx([0.5, 0.5, 0.25, 0.75], abs=1e-3)
    assert kept.collect(batch(), Given([0.5] * 4), 0).tensors["share"].tolist() == [0.5] * 4


def test_shares_and_levels():
    algorithm = NFT(Toy(), replace(CONFIG, group_size=2))
    rows = algorithm.collect(batch(), Given([0.1, 0.3, 0.9, 0.5]), 0).tensors
    torch.testing.assert_close(rows["share"], torch.tensor([0.25, 0.75, 0.75, 0.25]).double(), atol=1e-3, rtol=0)
    limited = NFT(Toy(), replace(CONFIG, group_size=2, advantage_clip=0.5))
    rows = limited.collect(batch(), Given([0.1, 0.3, 0.9, 0.5]), 0).tensors
    assert rows["share"].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert set(rows["s"].tolist()) <= {1.0, 1 - 1 / 3, 1 - 2 / 3}
    with pytest.raises(ValueError, match="group_size: expected 2 or more"):
        NFTConfig(group_size=1)
    with pytest.raises(ValueError, match="mix: expected more than 0"):
        NFTConfig(mix=0)
    for decay in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"^old_decay: expected 0 to below 1, got {decay}$"):
            NFTConfig(old_decay=decay)
    with pytest.raises(ValueError, match=r"^old_rate: expected more than 0, got 0$"):
        NFTConfig(old_decay=0.5, old_rate=0)


OLD = replace(CONFIG, old_decay=0.5, old_rate=0.3)


def test_the_old_policy_by_hand():
    """η is 0, 0.3, 0.5 and 0.5 for trained weights of 1, 2, 4 and 8; a step without learning counts as any other."""
    generator = Toy()
    algorithm = NFT(generator, OLD)
    for step, (trained, old) in enumerate([(1, 1), (2, 1.7), (4, 2.85), (8, 5.425)]):
        for parameter in generator.parameters():
            parameter.data.fill_(trained)
        if step == 2:
            with pytest.raises(DeadGroups):
                algorithm.collect(batch(), Given([0.5] * 6), step)
        else:
            algorithm.collect(batch(), Given([0.1, 0.2, 0.3] * 2), step)
        for parameter, kept in zip(generator.parameters(), algorithm.state(), strict=True):
            assert torch.equal(parameter, torch.full_like(parameter, trained))
            torch.testing.assert_close(kept, torch.full_like(kept, old))


def test_results_are_sampled_by_the_old_policy():
    """What a model with its weights collects is the same to the bit: results, their noise, v_old and r."""
    generator, same = Toy(), Toy()
    algorithm = NFT(generator, OLD)
    first = algorithm.collect(batch(), Red(), 0)
    assert float(algorithm.loss(first)["old_deviate"]) == 0
    generator.move()
    found = algorithm.collect(batch(), Red(), 1)
    for parameter, kept in zip(same.parameters(), algorithm.state(), strict=True):
        parameter.data.copy_(kept)
    expected = NFT(same, CONFIG).collect(batch(), Red(), 1).tensors
    by_trained = NFT(generator, CONFIG).collect(batch(), Red(), 1).tensors
    for name, values in found.tensors.items():
        assert torch.equal(values, expected[name]), name
    assert not torch.allclose(found.tensors["x0"], by_trained["x0"])
    rows = found.tensors
    v = generator.velocity(rows["x"], rows["s"], generator.condition(found.batch)).detach()
    terms = algorithm.loss(found)
    assert float(terms["old_deviate"]) == pytest.approx(float((v - rows["old"]).square().mean()))
    assert float(terms["old_deviate"]) > 1e-6


def test_the_old_policy_goes_on_from_its_state():
    generator = Toy()
    algorithm, other = NFT(generator, OLD), NFT(generator, OLD)
    algorithm.collect(batch(), Red(), 0)
    generator.move()
    algorithm.collect(batch(), Red(), 1)
    other.load_state([kept.clone() for kept in algorithm.state()])
    generator.move()
    rows = [one.collect(batch(), Red(), 2).tensors for one in (algorithm, other)]
    assert all(torch.equal(values, rows[1][name]) for name, values in rows[0].items())


def test_without_an_old_policy_there_are_no_further_weights():
    algorithm = NFT(Toy(), replace(CONFIG, old_rate=0.5))
    rows = algorithm.collect(batch(), Red(), 3)
    assert algorithm.state() == []
    assert float(algorithm.loss(rows)["old_deviate"]) == 0
    algorithm.load_state([])


@pytest.mark.parametrize("name", ["mix", "old_rate", "advantage_clip"])
def test_an_endless_weight_is_refused(name):
    """It would make the first loss NaN, after a whole rollout; Flow-GRPO, which only limits, may have it."""
    with pytest.raises(ValueError, match=f"^{name}: expected a number, got inf$"):
        NFTConfig(**{name: math.inf})
