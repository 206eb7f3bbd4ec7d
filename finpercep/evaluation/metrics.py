"""Metrics of maps and scores, one image or one list at a time.

Maps are (H,W), numpy or torch, finite; a leading axis of one is dropped. `target` is M_gt in [0, 1], `mask` the
swap mask (above 0.5 = swapped). Saliency metrics follow Bylinskii et al., "What do different evaluation metrics tell
us about saliency models?" (TPAMI 2019); their fixations are the pixels where the target reaches `FIXATION` of its
maximum.

Where a metric has no meaning because of the *target* (all zero, constant, or a mask without both classes) it is NaN,
and averages leave it out. A *prediction* without information is never NaN: a constant map has CC 0, NSS 0,
AUC 0.5 and AP equal to the mask's share, and an all-zero map counts as uniform in SIM and KLD.

`srcc` and `plcc` compare scores with human opinions, for data sets that have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

FIXATION = 0.5
IOU_THRESHOLD = 0.5
_EPSILON = float(np.finfo(np.float64).eps)  # as in the MIT benchmark's KLdiv.m

MAP_METRICS = ("cc", "auc", "ap", "iou", "iou_half", "sim", "kld", "nss", "auc_judd", "mae")
"""Names of what `map_metrics` returns, in the order of tables."""


def mae(prediction: Any, target: Any) -> float:
    """Mean absolute error: mean |P - Q|; in [0, 1] for maps in [0, 1], lower is better."""
    p, q = _pair(prediction, target)
    return float(np.abs(p.astype(np.float64) - q).mean())


def cc(prediction: Any, target: Any) -> float:
    """Pearson's linear correlation, in [-1, 1]. Constant prediction: 0; constant target: NaN."""
    p, q = _pair(prediction, target)
    return _pearson(p, q)


def sim(prediction: Any, target: Any) -> float:
    """Similarity: Σ min(P, Q) of maps that each sum to 1, in [0, 1], 1 = equal. All-zero target: NaN."""
    p, q = _distributions(*_pair(prediction, target))
    return float(np.minimum(p, q).sum())


def kld(prediction: Any, target: Any) -> float:
    """Kullback-Leibler divergence Σ Q·log(ε + Q / (P + ε)) of maps that each sum to 1, in nats.

    In [0, ~36], 0 = equal; ε is the double precision of 1, as in the MIT saliency benchmark. All-zero target: NaN.
    """
    p, q = _distributions(*_pair(prediction, target))
    return float((q * np.log(_EPSILON + q / (p + _EPSILON))).sum())


def nss(prediction: Any, target: Any) -> float:
    """Normalized scanpath saliency: mean of the z-scored prediction over the fixations; 0 = chance, no upper bound.

    Constant prediction: 0; all-zero target: NaN.
    """
    p, q = _pair(prediction, target)
    return _nss(p, fixations(q))


def auc_judd(prediction: Any, target: Any) -> float:
    """AUC-Judd: area of (false, true) positive rates with thresholds at the prediction's values at fixations.

    In [0, 1]. Tied pixels share one threshold, where the MIT code breaks ties by random jitter, so the figure is
    reproducible and a constant map has exactly 0.5. No fixation, or nothing but fixations: NaN.
    """
    p, q = _pair(prediction, target)
    return _judd_area(_count(p, fixations(q)))


def auc(prediction: Any, mask: Any) -> float:
    """ROC area against a mask: P(swapped pixel > untouched pixel), ties half; in [0, 1]. One class only: NaN."""
    p, q = _pair(prediction, mask)
    return _area(_count(p, q > 0.5))


def average_precision(prediction: Any, mask: Any) -> float:
    """Average precision Σ (R_n - R_{n-1})·P_n over distinct thresholds, in [0, 1]. Empty mask: NaN."""
    p, q = _pair(prediction, mask)
    return _average_precision(_count(p, q > 0.5))


def iou(prediction: Any, mask: Any, threshold: float = IOU_THRESHOLD) -> float:
    """Intersection over union of `prediction >= threshold` and the mask, in [0, 1]. Empty mask: NaN."""
    p, q = _pair(prediction, mask)
    inside = q > 0.5
    if not inside.any():
        return float("nan")
    marked = p >= threshold
    return float((marked & inside).sum() / (marked | inside).sum())


def best_iou(prediction: Any, mask: Any) -> float:
    """Largest intersection over union at any threshold, each map its own: an upper bound. Empty mask: NaN."""
    p, q = _pair(prediction, mask)
    return _best_iou(_count(p, q > 0.5))


def map_metrics(prediction: Any, target: Any, mask: Any) -> dict[str, float]:
    """All of `MAP_METRICS` at once, with one sort per set of positives; "iou" is `best_iou`, "iou_half" is at 0.5."""
    p, q = _pair(prediction, target)
    _, inside = _pair(prediction, mask)
    fixated = fixations(q)
    swapped = _count(p, inside > 0.5)
    return {
        "cc": _pearson(p, q),
        "auc": _area(swapped),
        "ap": _average_precision(swapped),
        "iou": _best_iou(swapped),
        "iou_half": iou(p, inside),
        "sim": sim(p, q),
        "kld": kld(p, q),
        "nss": _nss(p, fixated),
        "auc_judd": _judd_area(_count(p, fixated)),
        "mae": mae(p, q),
    }


def fixations(target: Any) -> np.ndarray:
    """Pixels (H,W) bool where the target reaches `FIXATION` of its maximum; none where the target is all zero."""
    q = _map(target, "target")
    peak = q.max()
    return q >= FIXATION * peak if peak > 0 else np.zeros(q.shape, dtype=bool)


def pairwise_probability(better: Any, worse: Any) -> float:
    """P(better > worse) over pairs: element i of one list against element i of the other; ties count half.

    In [0, 1]; no pairs: NaN.

    Raises:
        ValueError: different lengths, or values that are not finite.
    """
    a, b = _lists(better, worse, "better", "worse")
    return float(((a > b) + 0.5 * (a == b)).mean()) if a.size else float("nan")


def plcc(scores: Any, opinions: Any) -> float:
    """Pearson's linear correlation of two lists, in [-1, 1]; no mapping is fitted. See `cc` for constant lists."""
    return _pearson(*_lists(scores, opinions, "scores", "opinions"))


def srcc(scores: Any, opinions: Any) -> float:
    """Spearman's rank correlation of two lists, in [-1, 1]: Pearson's of average ranks."""
    a, b = _lists(scores, opinions, "scores", "opinions")
    return _pearson(_average_ranks(a), _average_ranks(b))


def mean_defined(values: Sequence[float]) -> float | None:
    """Mean of the values that are not NaN; None where there is none."""
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else None


class _Counts(NamedTuple):
    """Positives and negatives at or above each distinct value of the prediction, from the highest down."""

    true: np.ndarray
    false: np.ndarray


def _count(p: np.ndarray, positive: np.ndarray) -> _Counts:
    flat = p.ravel()
    order = np.argsort(-flat)
    ranked = flat[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), ranked.size - 1)  # of each run of equal values
    true = np.cumsum(positive.ravel()[order])[last]
    return _Counts(true, last + 1 - true)


def _area(counts: _Counts) -> float:
    positives, negatives = int(counts.true[-1]), int(counts.false[-1])
    if positives == 0 or negatives == 0:
        return float("nan")
    true = np.concatenate([[0.0], counts.true / positives, [1.0]])
    false = np.concatenate([[0.0], counts.false / negatives, [1.0]])
    return float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum())


def _judd_area(counts: _Counts) -> float:
    at_fixation = np.diff(counts.true, prepend=0) > 0
    if not at_fixation.any() or counts.false[-1] == 0:
        return float("nan")
    kept = _Counts(counts.true[at_fixation], counts.false[at_fixation])
    closed = _Counts(np.append(kept.true, counts.true[-1]), np.append(kept.false, counts.false[-1]))
    return _area(closed)


def _average_precision(counts: _Counts) -> float:
    if counts.true[-1] == 0:
        return float("nan")
    precision = counts.true / (counts.true + counts.false)
    return float((np.diff(counts.true, prepend=0) * precision).sum() / counts.true[-1])


def _best_iou(counts: _Counts) -> float:
    if counts.true[-1] == 0:
        return float("nan")
    return float((counts.true / (counts.true[-1] + counts.false)).max())


def _nss(p: np.ndarray, fixated: np.ndarray) -> float:
    if not fixated.any():
        return float("nan")
    if p.min() == p.max():
        return 0.0
    values = p.astype(np.float64)
    return float((values[fixated].mean() - values.mean()) / values.std())


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if b.size == 0 or b.min() == b.max():
        return float("nan")
    if a.min() == a.max():
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()), -1, 1))


def _distributions(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if p.min() < 0 or q.min() < 0:
        raise ValueError(f"map: expected values >= 0 for SIM and KLD, got {min(p.min(), q.min()):.4g}")
    p, q = p.astype(np.float64), q.astype(np.float64)
    if q.sum() == 0:
        return np.full(q.shape, np.nan), np.full(q.shape, np.nan)
    p = p if p.sum() > 0 else np.ones(p.shape)
    return p / p.sum(), q / q.sum()


def _average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _pair(prediction: Any, other: Any) -> tuple[np.ndarray, np.ndarray]:
    p, q = _map(prediction, "prediction"), _map(other, "target")
    if p.shape != q.shape:
        raise ValueError(f"prediction: expected {q.shape} like the target, got {p.shape}")
    return p, q


def _map(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values if values.dtype == torch.float64 else values.float()).numpy()
    array = np.asarray(values)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: expected a map (H,W), got shape {array.shape}")
    if array.dtype.kind != "f":
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, got {int((~np.isfinite(array)).sum())} that are not")
    return array


def _lists(first: Any, second: Any, first_name: str, second_name: str) -> tuple[np.ndarray, np.ndarray]:
    a = np.asarray([float(value) for value in first], dtype=np.float64)
    b = np.asarray([float(value) for value in second], dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{first_name}: expected {b.size} values like {second_name}, got {a.size}")
    for name, values in ((first_name, a), (second_name, b)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite values, got {values[~np.isfinite(values)][0]}")
    return a, b
