"""What a value of the map means: bins, means and overlaps by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.map_reliability import THRESHOLDS, reliability, table


def test_tenths_means_and_overlap() -> None:
    found = torch.tensor([[0.0, 0.05, 0.25], [0.95, 1.0, 0.25]])
    target = torch.tensor([[0.0, 0.2, 0.6], [1.0, 0.4, 0.0]])
    result = reliability([found, torch.zeros(2, 2)], [target, torch.zeros(2, 2)])
    assert result["share"] == pytest.approx([0.6, 0, 0.2, 0, 0, 0, 0, 0, 0, 0.2])
    assert result["target"][0] == pytest.approx(0.2 / 6)
    assert result["target"][2] == pytest.approx(0.3)
    assert result["target"][9] == pytest.approx(0.7)
    assert result["target"][1] is None
    # faults: .6 and 1.0; above .1 and .2 lie four pixels, two of them faults; above .5 two, one of them a fault
    assert dict(zip(THRESHOLDS, result["iou"], strict=True)) == pytest.approx(
        {0.1: 2 / 4, 0.2: 2 / 4, 0.3: 1 / 3, 0.4: 1 / 3, 0.5: 1 / 3}
    )


def test_table() -> None:
    values = {"photos": 2, "good": 0.5, "lowest": 0.1, **reliability([torch.zeros(2, 2)], [torch.zeros(2, 2)])}
    lines = table({"a": {"set": values}}).splitlines()
    assert lines[2] == "| a | set | 0.00 |  |  |  |  |  |  |  |  |  | 50% |"
    assert lines[-1] == "| a | set |  |  |  |  |  |"
