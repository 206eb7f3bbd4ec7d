"""The command that compares curricula: every variant runs, results are kept, and what is there is not repeated."""

from __future__ import annotations

import json

import pytest

from benchmarks import rl_claim
from benchmarks.rl_claim import main, stages, table
from tests.rl.conftest import photo_set  # noqa: F401

pytest.importorskip("matplotlib")


def test_budgets_are_equal():
    for variant in rl_claim.VARIANTS:
        found = stages(variant, ["a", "b", "c"], 90, 1e-4)
        assert sum(stage["steps"] for stage in found) == 90
    assert [stage["reward"] for stage in stages("ccl", ["a", "b", "c"], 90, 1e-4)] == ["a", "b", "c"]
    assert [stage["reward"] for stage in stages("RM_0", ["a", "b", "c"], 90, 1e-4)] == ["a"]
    assert [stage["reward"] for stage in stages("full", ["a", "b", "c"], 90, 1e-4)] == ["c"]
    again = stages("full-restarts", ["a", "b", "c"], 90, 1e-4)
    assert again == [{"reward": "c", "steps": 30, "lr": 1e-4}] * 3  # each falls along a cosine of its own


def test_results_are_known_by_the_data_not_by_where_they_lie():
    keys = {rl_claim.key_of("dpo", "RM_0", None, {"data": [place]}, {}) for place in ("/a/photos", "b/photos/")}
    assert len(keys) == 1
    assert "/a" not in keys.pop()


def test_table():
    """Changes, not levels; their mean and spread over seeds."""
    ends = [{"120": {"psnr": 20.0 + gain}, "80": {"psnr": 9.0}} for gain in (0.1, 0.3)]  # as a file orders them
    curves = [{"0": {"psnr": 20.0}, **end} for end in ends]
    runs = [{"algorithm": "dpo", "weight": None, "variant": "ccl", "curve": curve, "alarms": []} for curve in curves]
    assert "| dpo |  | ccl | 2 |  | +0.2000 ± 0.1414 |" in table(runs)
    assert "| dpo |  | ccl | 1 |  | +0.1000 |" in table(runs[:1])


def test_refl_is_told_apart_by_its_weight():
    """The control, without a reward, comes first; weights ascend, as numbers; variants in their own order."""
    made = [(25.0, "RM_0"), (5.0, "full"), (5.0, "RM_0"), (0.0, "photos")]
    runs = [{"algorithm": "refl", "weight": weight, "variant": variant} for weight, variant in made]
    found = [(weight, variant) for _, weight, variant, _ in rl_claim.grouped(runs)]
    assert found == [(0.0, "photos"), (5.0, "RM_0"), (5.0, "full"), (25.0, "RM_0")]


def test_weights_are_of_refl_alone():
    assert rl_claim.weights_of("refl", "full", [1.0, 5.0]) == [1.0, 5.0]
    assert rl_claim.weights_of("refl", "photos", [1.0, 5.0]) == [0.0]
    assert rl_claim.weights_of("grpo", "full", [1.0, 5.0]) == [None]
    for control in ("photos", "full-restarts"):  # of ReFL alone
        assert rl_claim.weights_of("grpo", control, [1.0, 5.0]) == []
    assert rl_claim.assignments("refl", 0.0) == ["algorithm.weight=0"]
    assert rl_claim.assignments("dpo", None) == ["algorithm.beta=200"]


def test_end_to_end(photo_set, tmp_path, model_folder, capsys, monkeypatch):  # noqa: F811
    """Three steps of ReFL, in two variants that together have every kind of stage."""
    common = [str(photo_set), "--stages", "finpercep-tiny", str(model_folder), str(model_folder), "--seeds", "0"]
    common += ["--algorithms", "refl", "--weights", "5", "--steps", "3", "--photos", "1"]
    common += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    common += ["--figure", str(tmp_path / "results" / "rl_claim.png")]
    monkeypatch.setitem(rl_claim.SETTINGS, "refl", ["side=32", "batch=1", "refresh.steps=1", "monitors.judge=''"])
    main([*common, "--variants", "RM_0"])
    main([*common, "--variants", "RM_0", "ccl-refresh"])
    printed = capsys.readouterr().out
    assert "2/2: algorithm refl, weight 5.0, variant ccl-refresh, seed 0" in printed
    assert printed.count("1/2") == 0  # it is there already
    found = json.loads((tmp_path / "results" / "rl_claim.json").read_text())["runs"]
    assert [run["variant"] for run in found] == ["RM_0", "ccl-refresh"]
    for run in found:
        assert list(run["curve"]) == ["0", "1", "2", "3"]
        assert {"psnr", "severity", "RM_0", "RM_2"} <= run["curve"]["3"].keys()
    assert (tmp_path / "results" / "rl_claim.png").stat().st_size > 1000
    assert "Expected beforehand" in (tmp_path / "results" / "rl_claim.md").read_text()
    with pytest.raises(SystemExit):
        main([*common, "--steps", "4"])
