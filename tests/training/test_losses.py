import math

import pytest
import torch

from finpercep.training.losses import (
    LossWeights,
    align_loss,
    distinct_pairs,
    entropy_loss,
    level_loss,
    map_loss,
    map_losses,
    order_loss,
    raise_odds,
    rank_loss,
    total_loss,
    triplet_targets,
)


def test_map_loss_is_the_mean_absolute_difference():
    assert map_loss(torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.25])) == pytest.approx(0.625)
    weight = torch.tensor([1.0, 0.2])
    assert map_loss(torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.25]), weight) == pytest.approx(0.525)


def test_raise_odds_adds_to_the_logits():
    logits = torch.linspace(-8, 8, 9, dtype=torch.float64, requires_grad=True)
    raised = raise_odds(logits.sigmoid(), 3.0)
    torch.testing.assert_close(raised.logit(), logits + math.log(3))
    assert torch.equal(raise_odds(torch.tensor([0.0, 0.25, 1.0]), 1.0), torch.tensor([0.0, 0.25, 1.0]))
    assert raise_odds(torch.tensor([0.0, 1.0]), 3.0).tolist() == [0, 1]


@pytest.mark.parametrize("where", ["map", "target"])
def test_entropy_of_what_is_not_finite_is_nan(where):
    """Not an error of torch's, which on CUDA ends the process's context: `FiniteGuard` says which step it was."""
    predicted, target = torch.full((1, 1, 2, 2), 0.25, requires_grad=True), torch.full((1, 1, 2, 2), 0.75)
    right = entropy_loss(predicted, target)
    assert right.item() == pytest.approx(-0.75 * math.log(0.25) - 0.25 * math.log(0.75))
    spoiled = torch.tensor([[[[math.nan, 1], [1, 1]]]])
    factors = {"map": (spoiled, 1), "target": (1, spoiled)}[where]
    loss = entropy_loss(factors[0] * predicted, factors[1] * target)
    assert loss.isnan()
    loss.backward()


@pytest.mark.parametrize(
    ("gt", "syn", "sr", "expected"),
    [
        (0.9, 0.7, 0.2, 0.0),  # both margins kept
        (0.9, 0.85, 0.2, 0.05),  # m2 missed by 0.05
        (0.9, 0.7, 0.65, 0.05),  # m1 missed by 0.05
        (0.2, 0.5, 0.9, 0.4 + 0.5),  # order reversed: m2 + 0.3 and m1 + 0.4
    ],
)
def test_rank_loss(gt, syn, sr, expected):
    scores = (torch.tensor([value]) for value in (gt, syn, sr))
    assert rank_loss(*scores, margin_sr=0.1, margin_syn=0.1).item() == pytest.approx(expected, abs=1e-6)


def test_each_margin_is_of_its_own_pair():
    """m1 = 0.3 of implanted photo and result, which are 0.1 apart; m2 = 0.05 of photo and implanted photo, 0.02."""
    scores, faults = [torch.tensor([value]) for value in (0.72, 0.7, 0.6)], torch.ones(1, 1, 1, 1)
    assert rank_loss(*scores, margin_sr=0.3, margin_syn=0.05).item() == pytest.approx(0.2 + 0.03)
    found = order_loss(scores, 0.5 * faults, faults, LossWeights(margin_sr=0.3, margin_syn=0.05))
    assert found.item() == pytest.approx(0.2 + 0.03)


def test_a_pair_differs_by_more_than_two_levels_at_one_pixel():
    """Of 8 bits, which two roundings may make."""
    target_syn, target_sr = torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    target_syn[0, 0, 5, 3], target_syn[1, 0, 5, 3] = 3 / 255, 2 / 255
    target_sr[0, 0, 5, 3], target_sr[2, 0, 0, 7] = 5 / 255, 3 / 255
    worse_sr, worse_syn = distinct_pairs(target_syn, target_sr)
    assert (worse_sr.tolist(), worse_syn.tolist()) == ([False, False, True], [True, False, False])


def test_ties_have_no_order_to_learn():
    scores = [
        torch.tensor(values, requires_grad=True) for values in ([0.5, 0.5, 0.9], [0.5, 0.5, 0.85], [0.5, 0.5, 0.2])
    ]
    target_syn, target_sr = torch.zeros(3, 1, 4, 4), torch.zeros(3, 1, 4, 4)
    target_sr[1:] = 0.6  # the first triplet's result is its photo
    target_syn[1] = 0.6  # the second one's mask covers everything
    target_syn[2, :, :2] = 0.6
    worse_sr, worse_syn = distinct_pairs(target_syn, target_sr)
    assert (worse_sr.tolist(), worse_syn.tolist()) == ([False, False, True], [False, True, True])
    loss = rank_loss(*scores, margin_sr=0.1, margin_syn=0.1, worse_sr=worse_sr, worse_syn=worse_syn)
    assert loss.item() == pytest.approx((0.1 + 0.05) / 2)  # of the two pairs of m2; that of m1 is kept
    loss.backward()
    assert scores[2].grad.tolist() == [0, 0, 0]
    assert scores[0].grad.tolist() == [0, -0.5, -0.5]
    nothing = torch.zeros(3, dtype=torch.bool)
    assert rank_loss(*scores, margin_sr=0.1, margin_syn=0.1, worse_sr=nothing, worse_syn=nothing).item() == 0


def test_rank_loss_gradient_points_the_right_way():
    gt, syn, sr = (torch.tensor([0.5], requires_grad=True) for _ in range(3))
    rank_loss(gt, syn, sr, margin_sr=0.1, margin_syn=0.1).backward()
    assert (gt.grad.item(), syn.grad.item(), sr.grad.item()) == (-1, 0, 1)


def test_align_loss_does_not_train_the_base():
    base = torch.tensor([0.2, 0.4], requires_grad=True)
    score = torch.tensor([0.5, 0.3], requires_grad=True)
    loss = align_loss(score, base)
    loss.backward()
    assert loss.item() == pytest.approx(0.2)
    assert base.grad is None
    assert score.grad.tolist() == [0.5, -0.5]


def test_total_loss_weights():
    terms = {"map": torch.tensor(1.0), "rank": torch.tensor(10.0), "align": torch.tensor(100.0)}
    assert total_loss(terms, LossWeights()).item() == pytest.approx(1 + 8 + 60)
    assert total_loss({"rank": torch.tensor(10.0)}, LossWeights()).item() == pytest.approx(8)
    ours = {"entropy": torch.tensor(1.0), "level": torch.tensor(10.0), "climb": torch.tensor(100.0)}
    assert total_loss(ours, LossWeights()).item() == pytest.approx(0.3 + 10 + 100)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("name", ["rank", "margin_syn"])
def test_weights_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected a finite number of at least 0, got {value}$"):
        LossWeights(**{name: value})


def test_entropy_loss_and_its_gradient_where_the_map_is_nearly_zero():
    logits = torch.tensor([0.0, -12.0], requires_grad=True)
    target = torch.tensor([0.5, 1.0])
    loss = entropy_loss(logits.sigmoid(), target)
    assert loss.item() == pytest.approx((0.6931 + 12.0) / 2, abs=1e-3)
    weighted = entropy_loss(logits.sigmoid(), target, torch.tensor([1.0, 0.5]))
    assert weighted.item() == pytest.approx((0.6931 + 6.0) / 2, abs=1e-3)
    loss.backward()
    assert logits.grad[1].item() == pytest.approx(-0.5, abs=1e-3)  # L_map's would be -3e-6
    assert entropy_loss(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])) < 1e-5
    far = torch.tensor([-20.0], requires_grad=True)
    entropy_loss(raise_odds(far.sigmoid(), 4.5), torch.ones(1)).backward()
    assert far.grad.item() == pytest.approx(-1, abs=1e-3)
    assert entropy_loss(torch.tensor([1 + 2**-23]), torch.ones(1)) == 0  # rounding may make 1 a little more


def test_losses_of_triplets():
    """Photo, implanted photo, whole result, one after the other; the parts are the losses above."""
    weights = LossWeights(restored=0.5, fault_odds=3.0)
    target_syn, target_sr = torch.tensor([0.0, 0.4]).view(2, 1, 1, 1), torch.tensor([0.2, 0.8]).view(2, 1, 1, 1)
    target, weight = triplet_targets(target_syn, target_sr, weights)
    assert target.flatten().tolist() == pytest.approx([0, 0, 0, 0.4, 0.2, 0.8])
    assert weight.flatten().tolist() == [1, 1, 1, 1, 0.5, 0.5]
    predicted = torch.full((6, 1, 1, 1), 0.5)
    found = map_losses(predicted, target, weight, weights)
    assert found["map"] == map_loss(torch.full_like(predicted, 0.75), target, weight)
    assert found["entropy"] == entropy_loss(torch.full_like(predicted, 0.75), target, weight)
    scores = [torch.tensor(values) for values in ([0.9, 0.8], [0.85, 0.75], [0.8, 0.67])]
    # Photo and implanted photo of the first are alike: only the second has that order to learn.
    assert order_loss(scores, target_syn, target_sr, weights).item() == pytest.approx((0.05 + 0.02) / 2 + 0.05)
    usual = map_losses(predicted, target, triplet_targets(target_syn, target_sr, LossWeights())[1], LossWeights())
    raised = 4.5 / 5.5  # even odds, 4.5 times as high
    expected = (3 * raised + (raised - 0.4) + 0.3 * (raised - 0.2) + 0.3 * (raised - 0.8)) / 6
    assert usual["map"].item() == pytest.approx(expected)


def test_level_loss():
    target = torch.stack([torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])])
    target[1] = 0.25 * target[1] / 0.5  # a mean of 0.25, whose root is 0.5
    divergence = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)
    assert level_loss(torch.tensor([0.9, 0.6]), target).item() == pytest.approx((0 + divergence) / 2, abs=1e-6)


def test_level_loss_pulls_at_saturated_scores():
    for value, pull in ((-9.0, -0.9), (-20.0, -0.9), (-60.0, -0.9), (15.0, 0.1)):
        logit = torch.tensor([value], requires_grad=True)
        level_loss(logit.sigmoid(), torch.zeros(1, 1, 2, 2)).backward()
        assert logit.grad.item() == pytest.approx(pull, abs=0.01), value
