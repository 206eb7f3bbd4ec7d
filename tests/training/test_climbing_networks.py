"""Networks that learn to raise a score: what they may change, what they learn, what is learned from them."""

from __future__ import annotations

import copy

import pytest
import torch

from finpercep.data.randomness import seeded
from finpercep.models import RewardModel
from finpercep.runs.ranks import Ranks
from finpercep.training import climbing_networks
from finpercep.training.climbing import ClimbConfig
from finpercep.training.climbing_networks import ClimbingNetwork, ClimbingNetworks

CPU = torch.device("cpu")


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def networks(share=1.0, batch=1):
    return ClimbingNetworks(ClimbConfig(climb_networks=share), batch, Ranks(CPU), CPU)


@pytest.fixture(scope="module")
def model():
    return RewardModel.from_pretrained("finpercep-tiny", fold=False).train()


@pytest.fixture
def step(make_photo):
    """What `climb` is given of a step: images, targets and weights of two triplets, and that they are aligned."""
    images = torch.stack([make_photo(48, 48, seed=i) for i in range(6)]).mul(255).round().div(255)
    weight = torch.tensor([1, 1, 1, 1, 0.25, 0.5]).view(6, 1, 1, 1)
    return images, torch.full((6, 1, 48, 48), 0.3), weight, torch.tensor([True, True])


@pytest.mark.parametrize("period", [1, 2, 4])
def test_a_network_repeats_with_its_period_within_its_reach(period):
    network = ClimbingNetwork(period, 0.02, drawn(0))
    gray = torch.full((1, 3, 66, 69), 0.3)
    assert torch.equal(network(gray), gray)
    with torch.no_grad():
        network.layers[-1].weight.normal_(std=10, generator=drawn(1))
    change = (network(gray) - gray)[..., 16:48, 16:48]
    assert change.abs().max().item() == pytest.approx(0.02, rel=1e-3)
    torch.testing.assert_close(change[..., :-period, :-period], change[..., period:, period:])
    if period > 1:
        assert not torch.allclose(change[..., :-1], change[..., 1:])
    assert network(torch.ones(1, 3, 8, 8)).max() == 1


def test_networks_learn_to_raise_the_score_and_darken_the_map(model, step, monkeypatch):
    monkeypatch.setattr(climbing_networks, "LIFE", 10**9)
    pool = networks(batch=2)
    for number in range(40):
        pool.climb(model, *step, drawn(number))
    images = step[0]
    judge = RewardModel.from_pretrained("finpercep-tiny")
    with torch.no_grad():
        before, found = judge(images), [judge(network(images)) for network, _ in pool.pool]
    assert max(after.score.mean() - before.score.mean() for after in found) > 0.05
    assert min(after.map.mean() - before.map.mean() for after in found) < 0
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_map_is_climbed_by_its_score(step, monkeypatch):
    monkeypatch.setattr(climbing_networks, "LIFE", 10**9)
    judge, pool = RewardModel.from_pretrained("finpercep-tiny/0"), networks(batch=2)
    for number in range(40):
        pool.climb(judge, *step, drawn(number))
    with torch.no_grad():
        before, found = judge(step[0]).score, [judge(network(step[0])).score for network, _ in pool.pool]
    assert max((after - before).mean() for after in found) > 0.05


def test_what_they_make_is_measured_against_the_photo(model, step):
    """Four triplets' worth of draws: each image is as a file holds it, beside its own photo, with a result's weight."""
    images, _, weight, _ = step
    pool = networks(batch=2)
    kinds = set()
    for number in range(12):
        climbed = pool.climb(model, *step, drawn(number))
        assert climbed.rows.tolist() == [0, 1]
        assert torch.equal((climbed.after * 255).round() / 255, climbed.after)
        assert not climbed.target.any()
        for before, after, share in zip(climbed.before, climbed.after, climbed.weight, strict=True):
            triplet = next(i for i in range(2) if torch.equal(before, images[i]))
            assert share.item() == weight[4 + triplet].item()
            distance = (images[triplet::2] - after).abs().mean((1, 2, 3))
            assert distance.min() < 12.5 / 255
            kinds.add(int(distance.argmin()))
    assert kinds == {0, 1, 2}


def test_what_lies_elsewhere_than_its_photo_is_measured_against_itself(model, step, monkeypatch):
    """Of a camera's two shots: the faults that it had, and what is new; networks that do not learn add nothing."""
    monkeypatch.setattr(ClimbingNetworks, "_learn", lambda *_: None)
    images, target, weight, _ = step
    pool, targets = networks(batch=2), target * torch.arange(6).view(6, 1, 1, 1)
    seen = set()
    for number in range(12):
        climbed = pool.climb(model, images, targets, weight, torch.tensor([True, False]), drawn(number))
        for before, after, there in zip(climbed.before, climbed.after, climbed.target, strict=True):
            given = next(i for i in range(6) if torch.equal(after, images[i]))
            foot = given if given % 2 else 0  # the second triplet is the one that is not aligned
            assert torch.equal(before, images[foot])
            assert torch.equal(there, targets[foot])
            seen.add(given)
    assert seen == set(range(6))


def test_a_pool_that_was_saved_goes_on_alike(model, step):
    first, second = networks(0.5, 2), networks(0.5, 2)
    assert first.state() == []
    for number in range(5):
        first.climb(model, *step, drawn(number))
    second.load(copy.deepcopy(first.state()))
    for number in range(5, 12):
        ours, theirs = (pool.climb(model, *step, drawn(number)) for pool in (first, second))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_networks_start_anew(model, step, monkeypatch):
    monkeypatch.setattr(climbing_networks, "LIFE", 1)
    pool = networks(batch=2)
    for number in range(6):
        pool.climb(model, *step, drawn(number))
    steps = [state["step"].item() for _, optimizer in pool.pool for state in optimizer.state.values()]
    assert steps
    assert set(steps) == {1.0}
    assert {network.period for network, _ in pool.pool} <= {1, 2, 4}
    assert all(1.5 <= network.amplitude * 255 <= 12 for network, _ in pool.pool)


def test_networks_live_for_sixty_steps_and_see_whole_results_twice_as_often(model, step, monkeypatch):
    """Networks that do not learn change nothing, which shows what they are given."""
    monkeypatch.setattr(ClimbingNetworks, "_learn", lambda *_: None)
    pool, kinds, renewed = networks(batch=2), [], 0
    for number in range(400):
        was = list(pool.pool)
        climbed = pool.climb(model, *step, seeded(0, "climbing networks", number))
        renewed += sum(now is not then for now, then in zip(pool.pool, was, strict=bool(was)))
        kinds += [next(i for i in range(6) if torch.equal(after, step[0][i])) // 2 for after in climbed.after]
    assert len(pool.pool) == 4
    assert 3 <= renewed <= 11  # 6.7 expected
    shares = [kinds.count(kind) / len(kinds) for kind in range(3)]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.05)


def test_the_share_is_an_image_at_least():
    assert networks(0.25, 7).count == 2  # of 1.75
    assert networks(0.0, 7).count == 0
    with pytest.raises(ValueError, match=r"^climb_networks: expected a share of the 7 triplets that is an image"):
        networks(0.05, 7)
