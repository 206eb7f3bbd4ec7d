"""Which pairs are looked at: by their figures, one of a scene."""

from __future__ import annotations

import math

import pytest

from finpercep.evaluation.cases import GROUPS, choose_cases
from finpercep.evaluation.evaluate import PairResult


def pair(scene: str, source: str, auc: float, margin: float, clean: float) -> PairResult:
    return PairResult(scene, source, (0.5, 0.5 - margin, 0.5), {"auc": auc, "cc": 0.0}, clean)


RESULTS = [
    pair("a", "gan", 0.9, 0.3, 0.02),
    pair("a", "vae", 0.2, -0.1, 0.02),
    pair("b", "gan", 0.5, 0.1, 0.30),
    pair("b", "vae", 0.7, 0.2, 0.30),
    pair("c", "gan", 0.8, -0.2, 0.01),
    pair("c", "vae", math.nan, 0.0, 0.01),
]


def names(pairs: list[PairResult]) -> list[str]:
    return [f"{pair.scene}-{pair.source}" for pair in pairs]


def test_each_group_is_ranked_by_its_own_figure() -> None:
    chosen = choose_cases(RESULTS, each=2)
    assert list(chosen) == list(GROUPS)
    assert names(chosen["worst"]) == ["a-vae", "b-gan"]
    assert names(chosen["typical"]) == ["b-vae", "c-gan"]  # .2 .5 [.7] .8 .9, then b-gan, whose scene is shown
    assert names(chosen["best"]) == ["a-gan", "c-gan"]
    assert names(chosen["order"]) == ["c-gan", "a-vae"]
    assert names(chosen["clean"]) == ["b-gan", "a-gan"]


def test_groups_need_what_they_are_ranked_by() -> None:
    without_maps = [PairResult(one.scene, one.source, one.scores, None, None) for one in RESULTS]
    assert list(choose_cases(without_maps)) == ["order"]
    without_scores = [PairResult(one.scene, one.source, None, one.map, one.clean) for one in RESULTS]
    assert list(choose_cases(without_scores)) == ["worst", "typical", "best", "clean"]
    assert choose_cases([]) == {}


def test_none_of_each_is_refused() -> None:
    with pytest.raises(ValueError, match="each: expected at least 1, got 0"):
        choose_cases(RESULTS, each=0)
