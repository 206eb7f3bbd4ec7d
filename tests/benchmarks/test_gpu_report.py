"""The check of a CUDA machine, as far as it goes without one: C++ operators, and a clock in the place of a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cases
from benchmarks.cases import CASES, GPU_CASES, Case
from benchmarks.gpu import ROOT, commands, measure, report, warm
from benchmarks.gpu import __main__ as run
from benchmarks.gpu.commands import Command

CEILINGS = {"copy_gbps": 4000.0, "matmul_tflops": 700.0, "launch_seconds": 2e-6}


def row(**changes: Any) -> dict[str, Any]:
    """800 MB in 250 µs by CUDA: 3200 GB/s, 80 % of the copy."""
    base = {"operator": "modulate", "direction": "forward", "dtype": "bfloat16", "size": "s", "bytes": 800e6}
    seconds = {"eager": 1e-3, "compile": 3e-4, "triton": 2.6e-4, "cuda": 2.5e-4}
    return {**base, "seconds": seconds, "peak": {"eager": 900, "triton": 300, "cuda": 300}, "errors": {}, **changes}


def test_cells_and_bar() -> None:
    cells = dict(zip(report.COLUMNS, report.cells(row(), CEILINGS), strict=True))
    assert cells["cuda"] == "250.0"
    ratios = (cells["GB/s"], cells["% copy"], cells["× compile"], cells["memory ÷ eager"])
    assert ratios == ("3200", "80", "1.20", "0.33")
    assert cells["bar"] == "no: copy"
    peak = {"cuda": 3e2}
    assert report.cells(row(seconds={"cuda": 2.2e-4, "compile": 2e-4}), CEILINGS)[-1] == "no: compile"
    for operator in ("group_advantage", "group_advantage ids"):
        small = row(operator=operator, bytes=1e4, seconds={"cuda": 3e-6}, peak=peak)
        assert report.cells(small, CEILINGS)[-1] == "no: launch"
    assert report.cells(row(seconds={"cuda": 2.2e-4}), CEILINGS)[-1] == "yes, without compile"
    assert report.cells(row(seconds={"cuda": 2.2e-4, "compile": 2.5e-4}), CEILINGS)[-1] == "yes"


def test_what_was_not_measured_is_empty() -> None:
    assert report.cells(row(seconds={"eager": 1e-3}), CEILINGS)[-5:] == [""] * 5
    page = report.markdown(report.empty({"gpu": "A card"}) | {"checks": [{"name": "build", "result": "failed (1)"}]})
    assert "| build | failed (1) |" in page
    assert "Ceilings" not in page


def test_files(tmp_path: Path) -> None:
    result = report.empty({"gpu": "A card"}) | {"ceilings": CEILINGS, "rows": [row()]}
    path = tmp_path / "new" / "a-card.json"
    report.write(result, path)
    assert report.load(path) == result
    table = [line for line in path.with_suffix(".md").read_text().splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in table[1:]} == {len(report.COLUMNS) + 1}
    assert sorted(os.listdir(path.parent)) == ["a-card.json", "a-card.md"]  # nothing half


def test_model_and_errors_in_the_page() -> None:
    model = report.model_row() | {"seconds": {"encoder": 0.02, "reward, operator": 0.021}}
    result = report.empty({"gpu": "A"}) | {"ceilings": CEILINGS, "checks": [{"name": "a", "result": "x | y"}]}
    result["rows"] = [row(errors={"triton": "E: no"}), model | {"errors": {"reward, reference": "E: why"}}]
    page = report.markdown(result)
    assert "encoder 20.00 ms, reward, operator 21.00 ms (1.050 × encoder)." in page
    notes = (
        "- modulate forward bfloat16 s, triton: E: no\n- ViT-L/14 forward bfloat16 16 x 448², reward, reference: E: why"
    )
    assert page.endswith(f"Not measured:\n{notes}\n")
    assert "| a | x ¦ y |" in page


@pytest.mark.parametrize("case", [*GPU_CASES, *CASES], ids=lambda case: case.name)
def test_cases_exist_without_their_memory(case: Case) -> None:
    with torch.device("meta"):
        work = case.make()
        outputs = work.function("reference")(*work.leaves(False))
    assert outputs[0].device.type == "meta"
    assert work.traffic("training") >= work.traffic("forward") > 0


def test_sizes_reach_from_launch_bound_to_gigabytes() -> None:
    sizes = [cell.row["bytes"] for cell in measure.cells("operators")]
    assert min(sizes) < 1e5
    assert max(sizes) > 2e9


class Clock:
    """Stands for the timer of a GPU."""

    def __init__(self, broken: bool = False) -> None:
        self.is_broken = broken

    def __call__(self, call: Callable[[], object]) -> float:
        return 1e-3 if call() is not None else 0.0

    def peak(self, call: Callable[[], object]) -> int:
        return 7

    def broken(self) -> bool:
        return self.is_broken


SMALL = [
    Case("grpo_loss", "training", torch.float32, "48", partial(cases.grpo_loss, torch.float32, 48)),
    Case(
        "group_advantage ids",
        "forward",
        torch.float32,
        "4x24",
        partial(cases.group_advantage, torch.float32, 96, 24, True),
    ),
]


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Results to measure small cases into, on the CPU."""
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure, "GPU_CASES", SMALL)
    monkeypatch.setattr(measure, "EXECUTORS", ("eager", "no such backend", "cpp"))
    path = tmp_path / "a.json"
    report.write(report.empty({"gpu": "A"}) | {"ceilings": CEILINGS}, path)
    return path


def measured(path: Path, clock: Clock | None = None, seconds: float = 100.0, part: str = "operators") -> list[Any]:
    measure.main(path, part, seconds, clock or Clock())  # type: ignore[arg-type]
    rows: list[Any] = report.load(path)["rows"]
    return rows


def test_an_error_of_a_cell_leaves_the_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []
    write = report.write

    def kept(result: report.Row, path: Path) -> None:
        saved.append(json.dumps(result))
        write(result, path)

    monkeypatch.setattr(report, "write", kept)
    rows = measured(path)
    assert [r["seconds"] for r in rows] == [{"eager": 1e-3, "cpp": 1e-3}] * 2
    assert [r["peak"] for r in rows] == [{"eager": 7, "cpp": 7}] * 2
    assert [r["bytes"] for r in rows] == [48 * 4 * 7, 96 * 16]
    for r in rows:
        assert r["errors"]["no such backend"].startswith("ValueError: backend: expected one of")
    assert json.loads(saved[0])["rows"][0]["errors"] == {"eager": measure.UNFINISHED}  # what a crash would leave
    assert json.loads(saved[1])["rows"][0]["seconds"] == {"eager": 1e-3}


def test_a_broken_device_ends_the_process_and_the_next_goes_on(path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        measured(path, Clock(broken=True))
    assert ended.value.code == measure.AGAIN
    result = report.load(path)
    assert result["rows"][0]["errors"]["no such backend"].startswith("broke the device, ValueError: backend")
    result["rows"][0]["seconds"]["eager"] = 5.0
    report.write(result, path)
    assert [r["seconds"]["eager"] for r in measured(path)] == [5.0, 1e-3]  # not measured twice


def test_an_executor_that_breaks_the_device_again_and_again_goes_last(path: Path) -> None:
    result = report.load(path)
    assert [cell.name for cell in measure.missing(result, "operators")] == ["eager", "no such backend", "cpp"] * 2
    result["rows"] += [row(size=why, errors={"eager": why}) for why in (measure.UNFINISHED, f"{measure.BROKE}E: why")]
    order = [cell.name for cell in measure.missing(result, "operators")]
    assert order == ["no such backend", "cpp"] * 2 + ["eager"] * 2


def test_without_time_nothing_is_measured(path: Path) -> None:
    measured(path, seconds=0.0)
    assert all(r["seconds"] == r["errors"] == {} for r in report.load(path)["rows"])


def test_variants_of_the_model_fail_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def variant(name: str, device: str) -> None:
        raise RuntimeError(f"no {name}\nmore")

    monkeypatch.setattr(measure, "variant", variant)
    model = measured(path, part="all")[-1]
    assert model["errors"]["encoder"] == "RuntimeError: no encoder"
    assert list(model["errors"]) == list(measure.VARIANTS)


def test_a_cell_that_hangs_ends_the_process() -> None:
    code = "import time\nfrom benchmarks.gpu.measure import watched\nwith watched(0.1): time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=50)
    assert done.returncode == measure.AGAIN


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(commands, "LOGS", tmp_path / "logs")


def test_a_command_out_of_time_keeps_its_output_and_leaves_no_process(logs: None, tmp_path: Path) -> None:
    child = f"import time; time.sleep(3); open({str(tmp_path / 'alive')!r}, 'w')"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    (outcome,) = commands.run([Command("slow", [sys.executable, "-c", code])], time.monotonic() + 1.5)
    assert outcome.check() == {"name": "slow", "result": "failed (out of time), 2 s: begun", "output": "begun\n"}
    time.sleep(3)
    assert not (tmp_path / "alive").exists()


def test_commands_at_the_same_time(logs: None) -> None:
    codes = ["print('fine')", "import os; print('bad'); raise SystemExit(int(os.environ['STATUS']))"]
    both = [Command(str(i), [sys.executable, "-c", c], {"STATUS": "3"}) for i, c in enumerate(codes)]
    good, bad = (outcome.check() for outcome in commands.run(both, time.monotonic() + 50))
    assert good["result"].startswith("ok, ")
    assert good["result"].endswith("s: fine")
    assert bad["result"].startswith("failed (3), ")
    assert bad["output"] == "bad\n"


def fake_run(monkeypatch: pytest.MonkeyPatch, statuses: list[int | None]) -> list[list[str]]:
    """Commands end with these statuses, then with 0, and do not run; returns the names of those started together."""
    started: list[list[str]] = []

    def fake(together: list[Command], until: float) -> list[commands.Outcome]:
        started.append([command.name for command in together])
        status = statuses[len(started) - 1] if len(started) <= len(statuses) else 0
        return [commands.Outcome(command.name, status, 1.0, "last\n") for command in together]

    monkeypatch.setattr(commands, "run", fake)
    return started


def test_measuring_goes_on_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    started = fake_run(monkeypatch, [-6, measure.AGAIN, 0])
    end = time.monotonic() + 100
    assert run.measure("all", ROOT / "x.json", end) == {"name": "measure all", "result": "ok, 1 s: last"}
    assert len(started) == 3
    started = fake_run(monkeypatch, [None])
    assert run.measure("all", ROOT / "x.json", end)["result"] == "its time was up, 1 s"
    assert len(started) == 1


def test_all_stages_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Build, measure, test, measure the rest; what fails is in the results, and the rest goes on."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    started = fake_run(monkeypatch, [1])
    result = run.check(tmp_path / "a.json", time.monotonic())
    stages = ["build", "measure operators", "tests of cuda 1/3", "measure all", "engine"]
    assert [names[0] for names in started] == stages
    assert started[2][-1] == "compile ahead built"
    checks = {check["name"]: check["result"] for check in result["checks"]}
    assert checks["build"].startswith("failed (1)")
    assert checks["tests of triton 5/5"].startswith("ok")
    assert not any("ahead" in name for name in checks)
    assert json.loads((tmp_path / "a.json").read_text()) == result
    assert run.BUILT < run.MEASURED < run.CHECKED < run.MODEL < run.ENDED < 8 * 60


def test_everything_measured_is_compiled_ahead() -> None:
    every = [cell.name for part in range(3) for cell in warm.chosen(str(part), "3")]
    assert sorted(every) == sorted(["encoder", "reward, reference", *["compile", "triton"] * len(GPU_CASES)])
    assert [cell.name for cell in warm.chosen("built")] == ["reward, operator"]


def test_tests_run_in_parts_that_leave_none_out() -> None:
    """The operators' tests behind -k, as the check runs them; here on the backend that a machine without GPU has."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-k", "sanitizer", "tests/gpu"]
    found = []
    for part in ([], ["--part", "1/2"], ["--part", "2/2"]):
        done = subprocess.run([*command, *part], capture_output=True, text=True, cwd=ROOT)
        found.append({line for line in done.stdout.splitlines() if "::" in line})
    assert found[0] == found[1] | found[2]
    assert abs(len(found[1]) - len(found[2])) <= 1


def test_kernels_are_found_in_a_tree_that_is_not_installed() -> None:
    code = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "") + repr(f)]
import finpercep
try:
    import finpercep.kernels
    raise SystemExit("an install is in the way of this test")
except ModuleNotFoundError:
    pass
import benchmarks.gpu
import finpercep.kernels._config
print(finpercep.kernels._config.__file__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == str(ROOT / "kernels" / "_config.py"), done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what happens without a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("no CUDA device")
