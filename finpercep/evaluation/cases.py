"""Which pairs of an evaluation to look at: where the map is least and most right, what lies between, where the score
errs most, and the photos that light up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finpercep.evaluation.evaluate import PairResult

__all__ = ["GROUPS", "choose_cases"]

EACH = 4
GROUPS = {
    "worst": "The map is least right",
    "typical": "The map is as right as it usually is",
    "best": "The map is most right",
    "order": "The score puts the result highest above its photo, or least below it",
    "clean": "Photos whose own map is brightest",
}
"""Keys of `choose_cases` and what they hold."""


def choose_cases(results: Sequence[PairResult], each: int = EACH) -> dict[str, list[PairResult]]:
    """`each` pairs for each of `GROUPS`, as far as there are any, and no scene twice in a group.

    Maps are ranked by their AUC against the replaced boxes, scores by S_SR - S_GT. Without maps or without scores,
    their groups are left out.

    Args:
        results: of one judge, in the order in which the evaluation gave them.
        each: pairs of a group.

    Raises:
        ValueError: `each` below 1.
    """
    if each < 1:
        raise ValueError(f"each: expected at least 1, got {each}")
    by_map = _ranked(results, _auc)
    middle = len(by_map) // 2
    near_middle = sorted(range(len(by_map)), key=lambda i: (abs(i - middle), i))
    ranked = {
        "worst": by_map,
        "typical": [by_map[i] for i in near_middle],
        "best": by_map[::-1],
        "order": _ranked(results, _margin),
        "clean": _ranked(results, lambda pair: None if pair.clean is None else -pair.clean),
    }
    return {name: _of_different_scenes(pairs, each) for name, pairs in ranked.items() if pairs}


def _ranked(results: Sequence[PairResult], figure: Callable[[PairResult], float | None]) -> list[PairResult]:
    """Those that have the figure, ascending; equal ones stay in their order."""
    found = [(value, pair) for pair in results if (value := figure(pair)) is not None]
    return [pair for _, pair in sorted(found, key=lambda item: item[0])]


def _auc(pair: PairResult) -> float | None:
    """None without a map, and where the AUC does not exist (the replaced boxes cover all or nothing)."""
    value = None if pair.map is None else pair.map["auc"]
    return value if value == value else None


def _margin(pair: PairResult) -> float | None:
    return None if pair.scores is None else pair.scores[0] - pair.scores[1]


def _of_different_scenes(pairs: Sequence[PairResult], count: int) -> list[PairResult]:
    first: dict[str, PairResult] = {}
    for pair in pairs:
        first.setdefault(pair.scene, pair)
    return list(first.values())[:count]
