"""Bootstrap intervals on evaluations whose intervals are known."""

import io
import math

import pytest
from rich.console import Console

from finpercep.evaluation.evaluate import Evaluation, PairResult
from finpercep.evaluation.intervals import INTERVAL_METRICS, bootstrap_intervals, interval_figures, interval_table
from finpercep.evaluation.metrics import MAP_METRICS


def pair(scene: int, scores: tuple[float, float, float] | None, cc: float | None = None, source: str = "a"):
    maps = None if cc is None else dict.fromkeys(MAP_METRICS, 0.25) | {"cc": cc}
    return PairResult(f"s{scene}", source, scores, maps, None)


IN_ORDER, REVERSED, TIED = (0.9, 0.1, 0.5), (0.1, 0.9, 0.5), (0.5, 0.5, 0.5)


def test_half_of_a_hundred_scenes():
    """The standard error of a share of 1/2 is 1/20 with 100 scenes: about 0.5 ± 0.098 for a normal distribution."""
    rows = [pair(i, IN_ORDER if i % 2 else REVERSED, cc=i % 2) for i in range(100)]
    found = bootstrap_intervals(rows)
    assert tuple(found) == INTERVAL_METRICS
    for name in ("gt_over_sr", "syn_over_sr", "gt_over_syn", "cc"):
        assert found[name] == pytest.approx((0.402, 0.598), abs=0.015)
    assert found["auc"] == (0.25, 0.25)
    low, high = bootstrap_intervals(rows, level=0.5)["cc"]  # ± 0.674 standard errors
    assert (low, high) == pytest.approx((0.466, 0.534), abs=0.012)


def test_scenes_are_drawn_and_not_pairs():
    """Four pairs that agree within a scene tell no more than one."""
    rows = [pair(i, IN_ORDER if i % 2 else REVERSED) for i in range(100)]
    often = [PairResult(row.scene, source, row.scores, None, None) for row in rows for source in "abcd"]
    assert bootstrap_intervals(often) == bootstrap_intervals(rows)


def test_crops_of_a_photo_are_one_scene():
    rows = [pair(i, IN_ORDER if i % 2 else REVERSED) for i in range(100)]
    crops = [PairResult(f"{row.scene}|0,{left}", "a", row.scores, None, None) for row in rows for left in (0, 8, 16)]
    assert bootstrap_intervals(crops) == bootstrap_intervals(rows)


def test_two_scenes():
    """The mean of two draws is either value a quarter of the time, so the interval is from one to the other."""
    assert bootstrap_intervals([pair(0, None, 0.2), pair(1, None, 0.6)])["cc"] == pytest.approx((0.2, 0.6))
    uneven = [pair(0, None, 0.2), pair(1, None, 0.6), pair(1, None, 0.8)]
    assert bootstrap_intervals(uneven, level=0.4)["cc"] == pytest.approx((1.6 / 3, 1.6 / 3))  # both scenes: all pairs


def test_ties_count_half_as_in_the_summary():
    assert bootstrap_intervals([pair(0, TIED), pair(1, TIED)])["gt_over_sr"] == (0.5, 0.5)


def test_what_was_not_measured_has_none():
    found = bootstrap_intervals([pair(0, IN_ORDER), pair(1, IN_ORDER)])
    assert found == {"gt_over_sr": (1, 1), "syn_over_sr": (1, 1), "gt_over_syn": (1, 1), "cc": None, "auc": None}
    assert set(bootstrap_intervals([pair(0, IN_ORDER, 0.5)]).values()) == {None}  # one scene
    left_out = [pair(0, None, 0.2), pair(1, None, 0.6), pair(2, None, math.nan)]
    assert bootstrap_intervals(left_out)["cc"] == pytest.approx((0.2, 0.6))


def test_seed_decides():
    rows = [pair(i, None, (i * 37 % 100) / 100) for i in range(100)]
    assert bootstrap_intervals(rows) == bootstrap_intervals(rows)
    assert bootstrap_intervals(rows, seed=1) != bootstrap_intervals(rows)


def test_figures_of_all_and_of_each_source():
    rows = [pair(i, None, 0.2 * (i % 2) + 0.5 * (source == "b"), source) for i in range(20) for source in "ab"]
    evaluation = Evaluation("model", "none", 0, (1, 3), rows)
    figures = interval_figures(evaluation)
    assert list(figures["sources"]) == ["a", "b"]
    low, high = figures["sources"]["a"]["cc"]
    assert 0 < low < 0.1 < high < 0.2
    assert figures["sources"]["b"]["cc"] == pytest.approx((low + 0.5, high + 0.5))
    assert figures["overall"]["cc"] == pytest.approx((low + 0.25, high + 0.25))
    for name in ("cc", "auc"):
        low, high = figures["overall"][name]
        assert low - 1e-12 <= evaluation.overall[name] <= high + 1e-12


def test_table():
    rows = [pair(0, IN_ORDER, 0.2), pair(1, REVERSED, 0.6)]
    buffer = io.StringIO()
    table = interval_table(
        [Evaluation("model", "jpeg75", 0, (1, 3), rows), Evaluation("other[/2]", "jpeg75", 0, (1, 3), [])]
    )
    Console(file=buffer, width=120).print(table)
    title, head, model, other = (line.split() for line in buffer.getvalue().splitlines())
    assert " ".join(title) == "shift jpeg75: 95 % intervals, scenes resampled 1000 times"
    assert head == ["all", "sources", "GT>SR", "SR<syn", "syn<GT", "CC", "AUC"]
    assert model == ["model", *["0.000-1.000"] * 3, "0.200-0.600", "0.250-0.250"]
    assert other == ["other[/2]"]
