"""Weights & Biases as a monitor: by a stand-in for its package, and by the package itself without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finpercep.runs.trackers import WeightsAndBiases


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    def init(**options: Any) -> Any:
        found.append(("init", options))
        return SimpleNamespace(
            id=options["id"] or "new7",
            define_metric=lambda *names, **options: found.append(("define", (*names, options))),
            log=lambda values: found.append(("log", values)),
            finish=lambda: found.append(("finish", None)),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return found


def test_figures_arrive_by_step_and_a_resumed_run_keeps_its_id(tmp_path: Path, calls: list[tuple[str, Any]]) -> None:
    for done, known in ((0, None), (4, "new7")):
        tracker = WeightsAndBiases(tmp_path, "sr", prefix="rl")
        tracker.start(["refl"], done=done, total=9)
        tracker.log(done + 1, {"loss": 0.5, "eval/psnr": 30.0})
        tracker.close()
        config = {"about": ["refl"], "steps": 9}
        assert calls == [
            ("init", {"project": "sr", "id": known, "resume": "allow", "dir": str(tmp_path), "config": config}),
            ("define", ("rl/*", {"step_metric": "step"})),
            ("define", ("eval/*", {"step_metric": "step"})),
            ("log", {"step": done + 1, "rl/loss": 0.5, "eval/psnr": 30.0}),
            ("finish", None),
        ]
        calls.clear()


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"^wandb is not installed; pip install 'finpercep\[wandb\]'$"):
        WeightsAndBiases(tmp_path, "sr")


def test_the_package_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"MODE": "offline", "SILENT": "true", "CACHE_DIR": str(tmp_path / "c")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracker = WeightsAndBiases(tmp_path, "sr")
    tracker.start(["refl"], done=0, total=2)
    tracker.log(1, {"loss": 0.5})
    tracker.log(2, {"loss": 0.25})
    found = dict(wandb.run.summary)
    tracker.close()
    assert (found["step"], found["train/loss"]) == (2, 0.25)
    assert (tmp_path / "wandb-id.txt").read_text() == tracker.run.id
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{tracker.run.id}/*.wandb"))
