"""Map and score metrics against values computed by hand and against scikit-learn and SciPy, where installed."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from finpercep.evaluation import metrics as m

PREDICTION = np.array([[0.9, 0.8], [0.4, 0.1]], dtype=np.float32)
MASK = np.array([[1, 0], [1, 0]], dtype=np.float32)


def random_case(seed: int, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    prediction = rng.random((23, 31))
    if levels:
        prediction = np.floor(prediction * levels) / levels
    return prediction.astype(np.float32), (rng.random((23, 31)) < 0.3).astype(np.float32)


def test_mae_and_cc_by_hand() -> None:
    target = np.array([[1.0, 0.5], [0.5, 0.0]])
    assert m.mae(PREDICTION, target) == pytest.approx((0.1 + 0.3 + 0.1 + 0.1) / 4)
    # deviations .35 .25 -.15 -.45 and .5 0 0 -.5: covariance sum .4, squares .41 and .5
    assert m.cc(PREDICTION, target) == pytest.approx(0.4 / math.sqrt(0.41 * 0.5))
    assert m.cc(-PREDICTION, target) == pytest.approx(-0.4 / math.sqrt(0.41 * 0.5))
    assert m.cc(3 * target + 1, target) == pytest.approx(1)


def test_distributions_by_hand() -> None:
    p, q = np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[2.0, 2.0], [0.0, 0.0]])
    assert m.sim(p, q) == pytest.approx(0.5)
    assert m.kld(p, q) == pytest.approx(math.log(2))
    assert m.sim(q, q) == pytest.approx(1)
    assert m.kld(q, q) == pytest.approx(0, abs=1e-12)
    assert m.sim(5 * q, q) == pytest.approx(1)
    disjoint = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert m.sim(disjoint, q) == 0
    assert m.kld(disjoint, q) == pytest.approx(math.log(0.5 / np.finfo(np.float64).eps), rel=1e-6)


def test_fixation_metrics_by_hand() -> None:
    target = np.array([[0.4, 0.2], [0.1, 0.0]])  # two fixations: at least half of 0.4
    np.testing.assert_array_equal(m.fixations(target), [[True, True], [False, False]])
    prediction = np.array([[3.0, 1.0], [2.0, 0.0]])
    assert m.nss(prediction, target) == pytest.approx((2 - 1.5) / math.sqrt(1.25))
    # thresholds 3 and 1 give (fp, tp) = (0, 1/2) and (1/2, 1): 1/2·3/4 + 1/2
    assert m.auc_judd(prediction, target) == pytest.approx(0.875)
    assert m.auc_judd(target, target) == pytest.approx(1)
    # thresholds -.2 and -.4 give (1, 1/2) and (1, 1): the first trapezoid alone
    assert m.auc_judd(-target, target) == pytest.approx(0.25)


def test_mask_metrics_by_hand() -> None:
    # positives .9 and .4, negatives .8 and .1: three of four pairs in order
    assert m.auc(PREDICTION, MASK) == pytest.approx(0.75)
    assert m.average_precision(PREDICTION, MASK) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert m.iou(PREDICTION, MASK) == pytest.approx(1 / 3)
    assert m.iou(PREDICTION, MASK, threshold=0.3) == pytest.approx(2 / 3)
    assert m.best_iou(PREDICTION, MASK) == pytest.approx(2 / 3)
    assert m.auc(MASK, MASK) == m.average_precision(MASK, MASK) == m.best_iou(MASK, MASK) == 1
    assert m.auc(1 - MASK, MASK) == 0


def test_a_mask_begins_above_a_half_and_a_mark_at_its_threshold() -> None:
    prediction, mask = np.array([[0.5, 0.2, 0.9]]), np.array([[1.0, 0.5, 0.0]])
    assert m.iou(prediction, mask) == pytest.approx(1 / 2)  # the first of the first and the last
    assert m.auc(prediction, mask) == m.best_iou(prediction, mask) == pytest.approx(1 / 2)
    assert m.average_precision(prediction, mask) == pytest.approx(1 / 2)


def test_correlations_stay_in_range_and_are_those_of_doubles() -> None:
    maps = [random_case(seed)[0][:5].astype(np.float64) for seed in range(60)]
    assert max(m.cc(one, 0.1 * one) for one in maps) == 1  # rounding would make some a little more
    assert min(m.cc(one, -0.1 * one) for one in maps) == -1
    rng = np.random.default_rng(0)
    p, q = (1000 + rng.integers(0, 8, (64, 64)).astype(np.float32) / 64 for _ in range(2))
    expected = np.corrcoef(p.ravel().astype(np.float64), q.ravel().astype(np.float64))[0, 1]
    assert m.cc(p, q) == pytest.approx(expected, abs=1e-9)


def test_means_leave_out_what_is_undefined_and_nothing_else() -> None:
    assert m.mean_defined([0.0, 1.0, float("nan"), 0.5]) == 0.5
    assert m.mean_defined([float("nan")]) is None


def test_ties_count_half() -> None:
    prediction = np.array([[0.5, 0.5], [0.9, 0.1]])
    # positives .5 .9, negatives .5 .1: one tie, three wins
    assert m.auc(prediction, MASK) == pytest.approx(3.5 / 4)


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_scikit_learn(seed: int, levels: int | None) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    prediction, mask = random_case(seed, levels)
    flat, positive = prediction.ravel(), mask.ravel()
    assert m.auc(prediction, mask) == pytest.approx(sklearn.roc_auc_score(positive, flat), abs=1e-12)
    expected = sklearn.average_precision_score(positive, flat)
    assert m.average_precision(prediction, mask) == pytest.approx(expected, abs=1e-12)
    assert m.iou(prediction, mask) == pytest.approx(sklearn.jaccard_score(positive, flat >= 0.5), abs=1e-12)
    best = max(sklearn.jaccard_score(positive, flat >= t) for t in np.unique(flat))
    assert m.best_iou(prediction, mask) == pytest.approx(best, abs=1e-12)


def test_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = random_case(3, levels=6)
    c = a * 0.3 + b + random_case(4)[0]
    assert m.cc(a, c) == pytest.approx(stats.pearsonr(a.ravel(), c.ravel())[0], abs=1e-6)
    assert m.plcc(a.ravel(), c.ravel()) == pytest.approx(stats.pearsonr(a.ravel(), c.ravel())[0], abs=1e-6)
    assert m.srcc(a.ravel(), c.ravel()) == pytest.approx(stats.spearmanr(a.ravel(), c.ravel())[0], abs=1e-12)
    p, q = a.astype(np.float64) + 0.1, c.astype(np.float64)
    assert m.kld(p, q) == pytest.approx(stats.entropy(q.ravel(), p.ravel()), abs=1e-9)


def test_judd_is_near_the_exact_area_without_ties() -> None:
    prediction, _ = random_case(5)
    target = 0.5 * prediction + 0.5 * random_case(6)[0]
    exact = m.auc(prediction, m.fixations(target))
    assert exact > 0.6
    # Judd's trapezoids lie above the staircase by at most half a step
    assert 0 <= m.auc_judd(prediction, target) - exact <= 0.5 / m.fixations(target).sum() + 1e-12


def test_constant_prediction_is_defined() -> None:
    target = np.array([[1.0, 0.5, 0.1], [0.2, 0.0, 0.0]])
    mask = (target > 0).astype(np.float32)
    for value in (0.0, 0.1, 1.0):
        constant = np.full(target.shape, value)
        got = m.map_metrics(constant, target, mask)
        assert got["cc"] == 0
        assert got["nss"] == 0
        assert got["auc"] == got["auc_judd"] == 0.5
        assert got["ap"] == got["iou"] == pytest.approx(4 / 6)
        assert got["sim"] == pytest.approx(m.sim(np.ones(target.shape), target))
        assert got["kld"] == pytest.approx(m.kld(np.ones(target.shape), target))


def test_undefined_targets_give_nan() -> None:
    zeros, ones = np.zeros((2, 2)), np.ones((2, 2))
    for metric in (m.cc, m.sim, m.kld, m.nss, m.auc_judd, m.auc, m.average_precision, m.iou, m.best_iou):
        assert math.isnan(metric(PREDICTION, zeros)), metric.__name__
    for metric in (m.cc, m.auc_judd, m.auc):
        assert math.isnan(metric(PREDICTION, ones)), metric.__name__
    assert m.average_precision(PREDICTION, ones) == m.best_iou(PREDICTION, ones) == 1
    assert m.mae(PREDICTION, zeros) == pytest.approx(0.55)
    assert math.isnan(m.pairwise_probability([], []))
    assert math.isnan(m.srcc([1, 2], [3, 3]))


def test_map_metrics_equals_the_single_functions() -> None:
    prediction, mask = random_case(7)
    target = mask * random_case(8)[0]
    got = m.map_metrics(torch.tensor(prediction)[None], torch.tensor(target), torch.tensor(mask).bool())
    single = {
        "cc": m.cc,
        "sim": m.sim,
        "kld": m.kld,
        "nss": m.nss,
        "auc_judd": m.auc_judd,
        "mae": m.mae,
    }
    masked = {"auc": m.auc, "ap": m.average_precision, "iou": m.best_iou, "iou_half": m.iou}
    assert tuple(got) == m.MAP_METRICS
    for name, value in got.items():
        expected = single[name](prediction, target) if name in single else masked[name](prediction, mask)
        assert value == pytest.approx(expected, abs=1e-12), name


def test_pairwise_probability() -> None:
    assert m.pairwise_probability([3, 2, 1, 0], [1, 2, 3, -1]) == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert m.pairwise_probability(torch.tensor([0.2]), [0.1]) == 1


def test_ranks_by_hand() -> None:
    assert m.srcc([1, 2, 3, 4], [1, 3, 2, 40]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert m.srcc([1, 1, 2], [5, 6, 7]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert m.plcc([1, 2, 3], [2, 4, 6]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.cc(np.zeros((2, 3)), np.zeros((3, 2))), r"prediction: expected \(3, 2\).*got \(2, 3\)"),
        (lambda: m.mae(np.zeros((2, 2, 2)), np.zeros((2, 2))), r"prediction: expected a map \(H,W\)"),
        (lambda: m.auc(np.full((2, 2), np.nan), MASK), "prediction: expected finite values, got 4"),
        (lambda: m.sim(-PREDICTION, MASK), "expected values >= 0"),
        (lambda: m.kld(MASK, -PREDICTION), "expected values >= 0"),
        (lambda: m.pairwise_probability([1, 2], [1]), "better: expected 1 values like worse, got 2"),
        (lambda: m.pairwise_probability([float("nan")], [1]), "better: expected finite values, got nan"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_double_precision_is_kept() -> None:
    close = torch.tensor([[0.5, 0.5 + 1e-12]], dtype=torch.float64)
    assert m.auc(close, torch.tensor([[0, 1]])) == 1


def test_fast_on_a_full_map() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.random((384, 384), dtype=np.float32), rng.random((384, 384), dtype=np.float32)
    start = time.perf_counter()
    m.map_metrics(p, q, q > 0.8)
    assert time.perf_counter() - start < 0.5  # 15 ms on a slow CPU; a quadratic method takes minutes
