"""The engine's checks of a CUDA machine, as far as they go without one, and their place in the results."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as run
from benchmarks.gpu import engine, loops, report
from benchmarks.gpu.commands import Outcome


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty result; few and small images."""
    monkeypatch.setattr(engine, "COUNT", 3)
    monkeypatch.setattr(engine.photos, "__defaults__", (((32, 48), (64, 40)),))
    engine.expected.cache_clear()
    report.write(report.empty({"gpu": "A card"}), tmp_path / "a.json")
    return tmp_path / "a.json"


def test_what_needs_no_gpu_holds_on_a_cpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    quick = {name: check for name, check in engine.ANYWHERE.items() if not name.startswith("train")}
    monkeypatch.setattr(engine, "ANYWHERE", quick)
    assert engine.main(path, 60, device="cpu")
    after = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    assert after == before  # what users have is what is checked
    found = report.load(path)["engine"]
    assert list(found) == list(engine.ANYWHERE)
    assert all(row["ok"] is True for row in found.values())
    page = path.with_suffix(".md").read_text()
    assert "| engine | | holds |" in page
    assert "| same bits |  | yes |" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in engine.ANYWHERE if name.startswith("train")])
def test_training_holds_on_a_cpu(name: str) -> None:
    """Two steps, and the same bits from the checkpoint between them."""
    found = engine.ANYWHERE[name]("cpu")
    assert found["ok"] is True
    assert found["resumed apart"] == 0


def test_a_run_that_resumes_elsewhere_is_seen() -> None:
    before, whole = torch.zeros(4), torch.ones(4)
    assert loops._compared(before, whole, whole, "cuda:0")["ok"] is True
    assert loops._compared(before, whole, whole + 0.01, "cuda:0")["ok"] is True
    assert loops._compared(before, whole, whole + 0.01, "cpu")["ok"] is False
    assert loops._compared(before, whole, whole + 0.1, "cuda:0")["ok"] is False
    assert loops._compared(before, before, before, "cpu")["ok"] is False  # nothing was learned
    assert loops._compared(before, whole, whole * float("nan"), "cuda:0")["ok"] is False


def test_checks_fail_alone_and_without_time_are_not_reached(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> dict[str, Any]:
        raise RuntimeError("no kernel\nat line 3")

    rows: dict[str, Any] = {
        "a": lambda device: {"ok": False, "ratio": 1.23456},
        "b": broken,
        "c": lambda device: {"ok": True},
    }
    monkeypatch.setattr(engine, "checks", lambda device: rows)
    assert not engine.main(path, 60)
    found = report.load(path)["engine"]
    assert found["b"] == {"ok": False, "error": "RuntimeError: no kernel"}
    assert found["c"] == {"ok": True}
    assert "| a | ratio 1.235 | no |" in path.with_suffix(".md").read_text()
    assert engine.main(path, -1)
    assert report.load(path)["engine"] == {name: {"error": "not reached"} for name in rows}
    assert "| a | error not reached |  |" in path.with_suffix(".md").read_text()


def test_another_process_goes_on_behind_the_check_that_ended_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def one(name: str) -> Any:
        def check(device: str) -> dict[str, Any]:
            asked.append(name)
            if name == "b":
                raise SystemExit(engine.AGAIN)
            return {"ok": True}

        return check

    monkeypatch.setattr(engine, "checks", lambda device: {name: one(name) for name in "abc"})
    with pytest.raises(SystemExit):
        engine.main(path, 60, device="cpu")
    assert report.load(path)["engine"]["b"] == {"ok": False, "error": engine.UNFINISHED}
    assert not engine.main(path, 60, device="cpu", again=True)
    assert asked == ["a", "b", "c"]
    assert report.load(path)["engine"]["c"] == {"ok": True}


def test_every_attention_that_is_installed_gives_one_map() -> None:
    found = engine.attention("cpu", layers=2, side=56, dtype=torch.float32)
    assert found["ok"] is True
    assert {"sdpa ms", "eager ms"} <= set(found)
    assert 0 < found["largest difference"] < 1e-4  # eager is another order of sums


def test_a_wrong_score_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine.expected(3)
    monkeypatch.setattr(engine, "expected", lambda *given: right.flip(0))
    assert engine.values("cpu")["ok"] is False


def test_what_is_covered() -> None:
    assert engine.covered([(0, 10)], [(2, 4), (3, 5), (9, 20)]) == 4
    assert engine.covered([(0, 10), (12, 13)], []) == 0


def test_values_of_sizes_of_ones_own(path: Path) -> None:
    assert engine.values("cpu", ((32, 64),))["ok"] is True


def test_a_check_that_is_cut_at_the_end_is_unfinished_not_failed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Any] = []

    def end(status: int) -> None:
        noted.append((status, report.load(path)["engine"]["a"]))

    def slow(device: str) -> dict[str, Any]:
        while not noted:
            time.sleep(0.01)
        return {"ok": True}

    monkeypatch.setattr(engine.os, "_exit", end)
    monkeypatch.setattr(engine, "checks", lambda device: {"a": slow})
    engine.main(path, 0.5, device="cpu")
    assert noted == [(engine.TIME_UP, {"error": engine.UNFINISHED})]
    assert engine._limit("a", 61.0, print) == (engine.LONGEST,)  # its own limit: a failure
    assert engine._limit("a, compiled", 61.0, print) == (61.0, print)


def test_time_that_was_up_is_no_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = engine.TIME_UP
    monkeypatch.setattr(run.commands, "run", lambda commands, until: [Outcome("engine", status, 7.0, "")])
    assert run.engine(path, time.monotonic() + 100)["result"] == "its time was up, 7 s"
    status = engine.AGAIN
    assert run.engine(path, time.monotonic())["result"].startswith("failed (75)")
