"""The latency table: quotients of a clock that is known, and what stays empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import latency
from finpercep.models import RewardModel


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test's calls move."""
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    return now


def test_a_cell_is_calls_over_the_products_beside_them(clock: list[float]) -> None:
    calls = 0

    def product() -> None:
        clock[0] += 0.01 if calls < 60 else 0.02  # a machine that becomes half as fast

    def call() -> None:
        nonlocal calls
        calls += 1
        slow = 3 if calls % 50 == 0 else 1
        clock[0] += slow * (0.03 if calls < 60 else 0.06)

    found = latency.cell(call, product, 100.0)
    assert found["calls"] == latency.MOST
    assert found["p50"] == pytest.approx(3)
    assert found["p99"] == pytest.approx(9)
    few = latency.cell(call, product, 0.7)
    assert latency.LEAST <= few["calls"] < latency.FOR_P99
    assert few["p99"] is None
    assert latency.cell(call, product, 0.2) == {"calls": 0}  # five calls would take 0.3


def test_what_was_not_measured_is_empty() -> None:
    rows = [
        {
            "model": "a",
            "batch": 1,
            "side": 256,
            "calls": 9,
            "p50": 1.2345,
            "p99": None,
            "ms": 12.345,
            "product_ms": 10.0,
        },
        {"model": "b", "batch": 4, "side": 448, "calls": 0},
    ]
    page = latency.markdown({"device": "d", "torch": "2", "dtype": "fp32", "product": "2048³, fp32", "rows": rows})
    assert "| a | 256² | 1 | 1.23 |  | 12.35 ms |" in page
    assert "| b | 448² | 4 |  |  |  |" in page
    assert page.startswith("d, torch 2, fp32; the matrix product, 2048³, fp32: 10.0 ms.\n")


def test_files_are_written_model_by_model(
    small_model: RewardModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SIDES", {"conv": (32,), "vit": (28,)})
    monkeypatch.setattr(latency, "BATCHES", (1, 2))
    monkeypatch.setattr(latency, "matrix_product", lambda device: lambda: None)
    monkeypatch.setattr(latency, "model_of", lambda name: small_model)
    latency.main(["finpercep-tiny", "--seconds", "0.2", "--out", str(tmp_path / "a.json")])
    found = json.loads((tmp_path / "a.json").read_text())
    assert [(row["side"], row["batch"]) for row in found["rows"]] == [(32, 1), (32, 2)]
    assert "| finpercep-tiny | 32² | 2 |" in (tmp_path / "a.md").read_text()


@pytest.mark.parametrize(("name", "width"), [("finpercep-vit-b-16", 768), ("finpercep-vit-l-14", 1024)])
def test_presets_are_of_the_checkpoints_sizes(name: str, width: int) -> None:
    import torch

    with torch.device("meta"):
        model = latency.model_of(name)
    assert tuple(model.encoder.taps) == latency.PRESETS[name].taps
    assert sum(p.numel() for p in model.encoder.parameters()) > 80e6 * (width / 768) ** 2
