"""M_gt by other features, beside the filter bank's: scales, a moved photo, and the measures by hand."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import target_features
from benchmarks.target_choices import separation
from tests.data.conftest import write_scenes


def test_separation_by_hand() -> None:
    target, mask = torch.tensor([[0.8, 0.6], [0.2, 0.0]]), torch.tensor([[True, True], [False, False]])
    found = separation([target], [mask])
    assert found["within"] == pytest.approx(0.7)
    assert found["beyond"] == pytest.approx(0.1)
    assert found["mass"] == pytest.approx(0.2 / 1.6)
    assert (found["auc"], found["iou"]) == (1.0, 1.0)
    assert found["grain"] == pytest.approx(0.2 / 1.4)


def test_scale_makes_targets_as_strong() -> None:
    raw, masks = [torch.full((4, 4), 0.2), torch.full((4, 4), 0.4)], [torch.ones(4, 4, dtype=torch.bool)] * 2
    assert target_features.scale_for(raw, masks, 0.5) == pytest.approx(0.6, rel=1e-3)


def test_a_moved_photo_is_moved(make_photo) -> None:
    photo = make_photo(64, 64, seed=0)
    moved = target_features.moved(photo)
    assert 0.01 < (moved - photo).abs().mean() < 0.2
    assert moved.mean() - photo.mean() == pytest.approx(4 / 255, abs=0.01)
    ramp = torch.linspace(0.2, 0.8, 61).expand(3, 61, 61)
    assert torch.allclose(
        target_features.moved(ramp)[..., 5:-5], ramp[..., 5:-5] + 0.006 + 4 / 255, atol=5e-4
    )  # bicubic


def test_the_table(tmp_path, monkeypatch, capsys) -> None:
    data = write_scenes(tmp_path, 3)
    monkeypatch.setattr(sys, "argv", ["x", str(data), "--every", "2", "--features", "reward:finpercep-tiny"])
    target_features.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 faults of 2 training scenes"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[0] for row in rows] == ["features", "---", "`filters`", "`reward:finpercep-tiny`"]
    assert {len(row) for row in rows} == {10}
    assert rows[2][1] == "0.080"
    assert rows[3][1] != "0.080"
    assert all(0.5 < float(row[4]) <= 1 for row in rows[2:])
