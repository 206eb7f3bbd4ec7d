import json
import os
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.gpu import ROOT, measure, report, stages, warm
from benchmarks.gpu.__main__ import CHECKS, MEASUREMENTS, SHARES, check, fingerprint, measured
from benchmarks.gpu.cases import CASES, advantage_of_ids
from benchmarks.gpu.stages import Command

CEILINGS = {"copy_gbps": 4000.0, "matmul_tflops": 700.0, "launch_seconds": 2e-6}


def row(**changes):
    """800 MB in 250 µs by CUDA: 3200 GB/s, 80 % of the copy."""
    base = {
        "operator": "modulate",
        "direction": "forward",
        "dtype": "bfloat16",
        "size": "s",
        "bytes": 800e6,
        "seconds": {"eager": 1e-3, "compile": 3e-4, "triton": 2.6e-4, "cuda": 2.5e-4},
        "peak": {"eager": 900, "triton": 300, "cuda": 300},
        "errors": {},
    }
    return base | changes


def test_cells_and_bar():
    cells = dict(zip(report.COLUMNS, report.cells(row(), CEILINGS), strict=True))
    assert cells["cuda"] == "250.0"
    assert cells["compile-max"] == ""  # not measured
    assert (cells["GB/s"], cells["% copy"], cells["× compile"], cells["memory ÷ eager"]) == (
        "3200",
        "80",
        "1.20",
        "0.33",
    )
    assert cells["bar"] == "no: copy"
    fast = row(seconds={"cuda": 2.2e-4, "compile": 2e-4})
    assert report.cells(fast, CEILINGS)[-1] == "no: compile"
    small = row(operator="group_advantage", bytes=1e4, seconds={"cuda": 3e-6})
    assert report.cells(small, CEILINGS)[-1] == "no: launch"
    ids = row(operator="group_advantage ids", bytes=1e4, seconds={"cuda": 3e-6})
    assert report.cells(ids, CEILINGS)[-1] == "no: launch"
    assert report.cells(row(seconds={"cuda": 2.2e-4}), CEILINGS)[-1] == "yes, without compile, compile-max"
    rivals = {"compile": 3e-4, "compile-max": 2.5e-4}
    assert report.cells(row(seconds={"cuda": 2.2e-4, **rivals}), CEILINGS)[-1] == "yes"


def test_what_was_not_measured_is_empty():
    assert report.cells(row(seconds={"eager": 1e-3}), CEILINGS)[-5:] == [""] * 5
    result = {"machine": {"gpu": "A card"}, "checks": [{"name": "build", "result": "failed (1)"}]}
    page = report.markdown(result)
    assert "| build | failed (1) |" in page
    assert "Ceilings" not in page


def test_files(tmp_path):
    result = {"machine": {"gpu": "A card"}, "checks": [], "ceilings": CEILINGS, "rows": [row()], "model": {}}
    page = report.write(result, tmp_path / "new" / "a-card.json")
    assert json.loads((tmp_path / "new" / "a-card.json").read_text()) == result
    table = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in table[1:]} == {len(report.COLUMNS) + 1}
    assert sorted(os.listdir(page.parent)) == ["a-card.json", "a-card.md"]  # nothing half


def test_results_are_added_to_on_the_same_machine_only(tmp_path):
    path, machine = tmp_path / "a.json", {"gpu": "A card", "sources": "1"}
    empty = report.load(path, machine)
    assert empty == {"machine": machine, "checks": [], "ceilings": {}, "rows": [], "model": {}}
    report.write({**empty, "rows": [row()]}, path)
    assert report.load(path, dict(machine))["rows"] == [row()]
    assert report.load(path, {**machine, "sources": "2"})["rows"] == []
    path.write_text("{")
    assert report.load(path, machine)["rows"] == []


def test_a_check_takes_the_place_of_its_earlier_run():
    result = {"checks": [{"name": "build", "result": "failed"}, {"name": "tests", "result": "ok"}]}
    report.put_check(result, {"name": "build", "result": "ok"})
    report.put_check(result, {"name": "racecheck", "result": "ok"})
    assert [tuple(c.values()) for c in result["checks"]] == [
        ("build", "ok"),
        ("tests", "ok"),
        ("racecheck", "ok"),
    ]


def test_model_and_errors_in_the_page():
    model = {
        "seconds": {"encoder": 0.02, "reward, operator": 0.021},
        "errors": {"reward, reference": "E: why"},
    }
    result = {
        "machine": {"gpu": "A"},
        "checks": [{"name": "a", "result": "x | y"}],
        "ceilings": CEILINGS,
        "rows": [row(errors={"compile-max": "E: no"})],
        "model": model,
    }
    page = report.markdown(result)
    assert "encoder 20.00 ms, reward, operator 21.00 ms (1.050 × encoder)." in page
    assert page.endswith(
        "Not measured:\n- modulate forward bfloat16 s, compile-max: E: no\n- ViT-L/14, reward, reference: E: why\n"
    )
    assert "| a | x ¦ y |" in page


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases_exist_without_their_memory(case: Case):
    with torch.device("meta"):
        work = case.make()
        outputs = work.reference(*work.leaves(False))
    assert outputs[0].device.type == "meta"
    assert work.traffic("training") >= work.traffic("forward") > 0


def test_sizes_reach_from_launch_bound_to_gigabytes():
    with torch.device("meta"):
        sizes = [case.make().traffic(case.direction) for case in CASES]
    assert min(sizes) < 1e5
    assert max(sizes) > 2e9


def test_advantage_of_ids_is_that_of_its_groups():
    work = advantage_of_ids(96, 24)
    rewards, ids = work.inputs
    assert work.forward_bytes == 96 * (4 + 8 + 4)
    assert ids.unique().numel() == 4
    advantages = work.reference(*work.leaves(False))[0]
    for group in ids.unique():
        members = rewards[ids == group]
        expected = (members - members.mean()) / (members.std(correction=0) + 1e-4)
        torch.testing.assert_close(advantages[ids == group], expected)


class Clock:
    """Stands for the timer of a GPU."""

    def __init__(self, broken: bool = False) -> None:
        self.is_broken = broken

    def __call__(self, call) -> float:
        return 1e-3 if call() is not None else 0.0

    def peak(self, call) -> int:
        return 7

    def broken(self) -> bool:
        return self.is_broken


SMALL = [
    Case("grpo_loss", "training", torch.float32, "48", partial(cases.grpo_loss, torch.float32, 48)),
    Case("group_advantage ids", "forward", torch.float32, "4x24", partial(advantage_of_ids, 96, 24)),
]


@pytest.fixture
def result(monkeypatch) -> dict:
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    return {"machine": {"gpu": "A"}, "checks": [], "ceilings": CEILINGS, "rows": [], "model": {}}


def run(result, timer, left=lambda: 1.0, names=("eager", "no such backend"), save=lambda: None):
    measure.measure_cases(result, SMALL, names, timer, left, save)


def test_an_error_of_a_cell_leaves_the_others(result):
    saved = []
    run(result, Clock(), save=lambda: saved.append(json.dumps(result)))
    assert [r["seconds"] for r in result["rows"]] == [{"eager": 1e-3}] * 2
    assert [r["peak"] for r in result["rows"]] == [{"eager": 7}] * 2
    assert [r["bytes"] for r in result["rows"]] == [48 * 4 * 7, 96 * 16]
    for r in result["rows"]:
        assert r["errors"]["no such backend"].startswith("ValueError: backend: expected one of")
    assert json.loads(saved[0])["rows"][0]["errors"] == {"eager": measure.UNFINISHED}  # what a crash would leave
    assert json.loads(saved[1])["rows"][0]["seconds"] == {"eager": 1e-3}


def test_a_broken_device_ends_the_process_and_the_next_goes_on(result):
    with pytest.raises(SystemExit) as ended:
        run(result, Clock(broken=True))
    assert ended.value.code == measure.AGAIN
    assert len(result["rows"]) == 1
    assert result["rows"][0]["errors"]["no such backend"].startswith("broke the device, ValueError: backend")
    result["rows"][0]["seconds"]["eager"] = 5.0
    run(result, Clock())
    assert [r["seconds"]["eager"] for r in result["rows"]] == [5.0, 1e-3]  # not measured twice


def test_an_executor_that_breaks_the_device_again_and_again_goes_last(result, monkeypatch):
    order = []
    monkeypatch.setattr(measure, "line", lambda row, ceiling: "")
    monkeypatch.setattr(measure, "attempt", lambda name, *rest: order.append(name))
    run(result, Clock())
    assert order == ["eager", "no such backend"] * 2
    for why in (measure.UNFINISHED, f"{measure.BROKE}E: why"):
        result["rows"].append(row(size=why, errors={"eager": why}))
    order.clear()
    run(result, Clock())
    assert order == ["no such backend"] * 2 + ["eager"] * 2


def test_without_time_nothing_is_measured(result):
    run(result, Clock(), left=lambda: 0.0)
    assert result["rows"][0]["seconds"] == result["rows"][0]["errors"] == {}


def test_variants_of_the_model_fail_alone(result, monkeypatch):
    def variant(name, device):
        raise RuntimeError(f"no {name}\nmore")

    monkeypatch.setattr(measure, "variant", variant)
    measure.measure_model(result, Clock(), lambda: 1.0, lambda: None)
    assert result["model"]["errors"]["encoder"] == "RuntimeError: no encoder"
    assert list(result["model"]["errors"]) == list(measure.VARIANTS)


def test_a_cell_that_hangs_ends_the_process():
    code = "import time\nfrom benchmarks.gpu.measure import watched\nwith watched(0.1): time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=50)
    assert done.returncode == measure.AGAIN


def test_a_command_out_of_time_keeps_its_output_and_leaves_no_process(tmp_path):
    child = f"import time; time.sleep(3); open({str(tmp_path / 'alive')!r}, 'w')"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    outcome = stages.run(Command("slow", [sys.executable, "-c", code], 1.5))
    assert outcome.check() == {
        "name": "slow",
        "result": "failed (out of time), 2 s: begun",
        "output": "begun\n",
    }
    time.sleep(3)
    assert not (tmp_path / "alive").exists()


def test_commands_at_the_same_time():
    codes = ["print('fine')", "import os; print('bad'); raise SystemExit(int(os.environ['STATUS']))"]
    commands = [Command(c, [sys.executable, "-c", c], 50, {"STATUS": "3"}) for c in codes]
    good, bad = (outcome.check() for outcome in stages.together(commands))
    assert good["result"].startswith("ok, ")
    assert good["result"].endswith("s: fine")
    assert bad["result"].startswith("failed (3), ")
    assert bad["output"] == "bad\n"


def test_measuring_goes_on_after_a_crash(monkeypatch):
    statuses, commands = [-6, measure.AGAIN, 0], []

    def fake(command):
        commands.append(command)
        return stages.Outcome(command.name, statuses[len(commands) - 1], 1.0, "last\n")

    monkeypatch.setattr(stages, "run", fake)
    assert measured("rows", ROOT / "x.json", 100.0) == {"name": "measure rows", "result": "ok, 1 s: last"}
    assert len(commands) == 3
    statuses[0] = None
    commands.clear()
    assert measured("rows", ROOT / "x.json", 100.0)["result"] == "its time was up, 1 s"
    assert len(commands) == 1


def test_two_commands_add_up(monkeypatch, tmp_path):
    """Measuring, then testing: nothing of the first is lost, and each stage gets its share of the time."""
    main, path, machine, given = sys.modules["benchmarks.gpu.__main__"], tmp_path / "a.json", {"gpu": "A"}, {}

    def stage(name, seconds, path, measuring):
        given[name] = seconds
        if name == "rows":
            report.write({**report.load(path, machine), "ceilings": CEILINGS, "rows": [row()]}, path)
        return [{"name": f"measure {name}" if name in MEASUREMENTS else name, "result": "ok"}]

    monkeypatch.setattr(main, "machine", lambda: machine)
    monkeypatch.setattr(main, "run_stage", stage)
    check([n for n in SHARES if n not in CHECKS], path, lambda: 100.0)
    assert given["model"] == 100.0  # the last one: all that is left
    assert given["rows"] == pytest.approx(100 * 60 / (60 + 30 + 20))
    result = check([n for n in SHARES if n not in MEASUREMENTS], path, lambda: 100.0)
    assert result["rows"] == [row()]
    names = [c["name"] for c in result["checks"]]
    assert sorted(names) == ["build", "measure model", "measure rest", "measure rows", "sanitizer", "tests"]
    assert check([n for n in SHARES if n not in CHECKS], path, lambda: 100.0)["rows"] == [row()]


def test_what_was_tuned_beside_others_is_forgotten(tmp_path):
    for name in ("a.best_config", "a.py"):
        (tmp_path / name).touch()
    warm.forget_tuning(tmp_path)
    assert os.listdir(tmp_path) == ["a.py"]


def test_everything_measured_is_compiled_ahead():
    assert [len(list(warm.jobs(built))) for built in (False, True)] == [2 + 2 * len(CASES), 1]
    names = {name for names in measure.PARTS.values() for name in names}
    assert names == set(report.EXECUTORS) == set(measure.CELL_SECONDS)


def test_kernels_are_found_in_a_tree_that_is_not_installed():
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


def test_fingerprint_is_of_the_sources():
    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 12


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what happens without a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("no CUDA device")
