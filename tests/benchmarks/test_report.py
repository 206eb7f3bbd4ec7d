"""The CPU table: what is compared with what, and when a bar counts as met."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pytest_benchmark", reason="the benchmarks need the extra 'bench'")

from benchmarks.report import rows_of
from benchmarks.test_operators import LARGE, Ceiling


def entry(executor: str, seconds: float, share: float, size: int = LARGE) -> dict[str, Any]:
    info = {
        "operator": "modulate",
        "direction": "forward",
        "dtype": "float32",
        "size": "large",
        "bytes": size,
        "rounds": 3,
        "executor": executor,
        "copy_gbps": 20.0,
        "gbps": 1.0,
        "share_of_copy": share,
    }
    return {"extra_info": info, "stats": {"median": seconds}}


def test_a_round_counts_by_the_copy_just_before_it():
    copy = Ceiling.__new__(Ceiling)
    copy.source = type("Source", (), {"nbytes": 500})()
    copy.seconds = [9.0, 1.0, 2.0, 4.0]  # the first belongs to the warm-up
    assert copy.share(1000, [0.5, 1.0, 2.0]) == pytest.approx(2.0)  # twice the copy, however slow the moment
    assert copy.share(1000, [0.5, 1.0, 100.0]) == pytest.approx(2.0)  # one disturbed round


def test_large_ratios_are_of_shares_and_small_ones_of_times():
    entries = [("eager", 8.0, 0.3), ("compile", 1.0, 0.8), ("cpp", 4.0, 1.2)]
    (large,) = rows_of([entry(*e) for e in entries])
    assert large["x_eager"] == pytest.approx(4.0)
    assert large["x_compile"] == pytest.approx(1.5)
    assert large["bar"] == "yes"
    (small,) = rows_of([entry(*e, size=LARGE - 1) for e in entries])
    assert small["x_eager"] == pytest.approx(2.0)
    assert small["x_compile"] == pytest.approx(0.25)
    assert small["bar"] == ""


def test_a_missed_bar_is_named():
    (row,) = rows_of([entry("eager", 1, 0.5), entry("compile", 1, 0.9), entry("cpp", 1, 1.0)])
    assert row["bar"] == "no: eager, compile"
    (row,) = rows_of([entry("cpp", 1, 1.0)])
    assert row["bar"] == "not measured"
