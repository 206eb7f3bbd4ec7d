"""Shares of a loop: spans, spans in spans, and labels of torch's own profiler."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from finpercep.engine import profiled, span


def test_shares_of_the_whole() -> None:
    waited = 0.0
    with profiled() as p:
        start = time.perf_counter()
        for _ in range(2):
            with p.span("rollout"):
                waited += _sleep(0.04)
            with p.span("reward"), span("encoder"):
                time.sleep(0.02)
        time.sleep(0.03)
        whole = time.perf_counter() - start
    times = p.times()
    assert list(times) == ["rollout", "reward/encoder", "reward", "other"]
    assert times["rollout"].calls == 2
    assert times["rollout"].seconds == pytest.approx(waited, abs=0.005)
    assert times["reward"].seconds >= times["reward/encoder"].seconds >= 0.04
    spent = times["rollout"].seconds + times["reward"].seconds
    assert times["other"].seconds == pytest.approx(whole - spent, abs=0.005)
    outer = [times[name].share for name in ("rollout", "reward", "other")]
    assert sum(outer) == pytest.approx(1)
    assert times["rollout"].share == pytest.approx(times["rollout"].seconds / p.seconds)
    head, first = p.table().splitlines()[:2]
    assert head.split() == ["span", "calls", "seconds", "share"]
    assert first.split()[:2] == ["rollout", "2"]


def _sleep(seconds: float) -> float:
    """How long it was: of a busy machine longer."""
    start = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - start


def test_a_span_without_a_profile_is_nothing() -> None:
    with span("reward"):
        pass
    with profiled() as p, span("reward"):
        pass
    assert list(p.times()) == ["reward", "other"]


def test_an_error_ends_spans_and_profile() -> None:
    with pytest.raises(KeyError), profiled() as p, p.span("a"), p.span("b"):
        raise KeyError
    with p.span("c"):
        pass
    assert set(p.times()) == {"a/b", "a", "c", "other"}
    with profiled() as q, span("d"):
        pass
    assert "d" in q.times()
    assert "d" not in p.times()


def test_labels_of_torchs_profiler_and_a_trace(tmp_path: Path) -> None:
    with profiled(trace=tmp_path / "new" / "trace.json") as p:
        for _ in range(3):
            with torch.profiler.record_function("update"):
                torch.rand(64, 64) @ torch.rand(64, 64)
            with p.span("reward"):
                torch.rand(8).sum()
    times = p.times()
    assert times["update"].calls == 3
    assert 0 < times["update"].seconds < p.seconds
    assert times["reward"].calls == 3  # once, not also as the label that it is in the trace
    names = {event.get("name") for event in json.loads((tmp_path / "new" / "trace.json").read_text())["traceEvents"]}
    assert {"update", "reward", "aten::mm"} <= names


def test_the_start_of_a_trace_is_not_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = torch.profiler.profile.__enter__

    def slowly(profile: torch.profiler.profile) -> torch.profiler.profile:
        time.sleep(0.5)
        return begin(profile)

    monkeypatch.setattr(torch.profiler.profile, "__enter__", slowly)
    with profiled(trace=tmp_path / "trace.json") as p, p.span("step"):
        time.sleep(0.05)
    assert 0.05 <= p.seconds < 0.4


def test_labels_in_spans_and_spans_in_labels_are_not_counted_twice(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 4)
    adam = torch.optim.Adam(layer.parameters())  # labels itself
    with profiled(trace=tmp_path / "trace.json") as p:
        with p.span("update"), p.span("step"):
            time.sleep(0.05)
            layer(torch.rand(2, 4)).sum().backward()
            adam.step()
            with torch.profiler.record_function("mine"), torch.profiler.record_function("inner"):
                time.sleep(0.05)
        with torch.profiler.record_function("phase"):
            with p.span("reward"):
                time.sleep(0.05)
            time.sleep(0.05)
        time.sleep(0.1)
    times = p.times()
    assert {name for name in times if "Adam" not in name} == {
        *("update", "update/step", "update/step/mine", "update/step/mine/inner"),
        *("phase", "reward", "other"),
    }
    assert times["update/step/Optimizer.step#Adam.step"].calls == 1
    covered = times["update"].seconds + times["phase"].seconds
    assert times["other"].seconds == pytest.approx(p.seconds - covered, abs=0.005)
    assert times["phase"].seconds > times["reward"].seconds + 0.04


def test_the_name_of_the_remainder_is_no_span() -> None:
    with profiled() as p:
        with pytest.raises(ValueError, match=r"^name: expected another one than .*, got 'other'"), span("other"):
            pass
        with p.span("reward"), p.span("other"):
            pass
    assert list(p.times()) == ["reward/other", "reward", "other"]


def test_who_profiles_a_part_takes_nothing_from_who_profiles_the_whole(tmp_path: Path) -> None:
    label = torch.profiler.record_function("inside")
    with (
        profiled(trace=tmp_path / "trace.json") as whole,
        whole.span("step"),
        profiled() as part,
        span("reward"),
        label,
    ):
        torch.rand(8).sum()
    assert list(part.times()) == ["reward", "other"]
    assert set(whole.times()) == {"step", "step/reward", "step/reward/inside", "other"}
    assert [time.calls for time in whole.times().values()] == [1, 1, 1, 1]


@pytest.mark.parametrize("trace", [False, True])
def test_the_whole_ends_with_an_error(tmp_path: Path, trace: bool) -> None:
    with pytest.raises(KeyError), profiled(trace=tmp_path / "trace.json" if trace else None) as p, p.span("step"):
        raise KeyError
    seconds = p.seconds
    time.sleep(0.05)  # of whatever comes after, in a notebook say
    assert 0 < p.times()["step"].seconds <= p.seconds == seconds
    assert p.times()["other"].seconds < seconds


def test_a_trace_in_a_trace_is_refused(tmp_path: Path) -> None:
    part = profiled(trace=tmp_path / "part.json")
    refused = pytest.raises(RuntimeError, match=r"^trace: expected no other trace around that of .*part\.json, got one")
    with profiled(trace=tmp_path / "whole.json") as whole, span("step"), refused:
        part.__enter__()
    assert (tmp_path / "whole.json").stat().st_size > 0
    assert list(whole.times()) == ["step", "other"]
