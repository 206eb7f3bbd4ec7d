import json
import subprocess
import sys

import pytest
import torch

from benchmarks.cases import Case
from benchmarks.gpu import report
from benchmarks.gpu.cases import CASES

CEILINGS = {"copy_gbps": 4000.0, "matmul_tflops": 700.0, "launch_seconds": 2e-6}


def row(**changes):
    """800 MB in 250 µs by CUDA: 3200 GB/s, 80 % of the copy."""
    base = {"operator": "modulate", "direction": "forward", "dtype": "bfloat16", "size": "s", "bytes": 800e6,
            "seconds": {"eager": 1e-3, "compile": 3e-4, "triton": 2.6e-4, "cuda": 2.5e-4},
            "peak": {"eager": 900, "triton": 300, "cuda": 300}, "errors": {}}  # fmt: skip
    return base | changes


def test_cells_and_bar():
    cells = dict(zip(report.COLUMNS, report.cells(row(), CEILINGS), strict=True))
    assert cells["cuda"] == "250.0"
    assert cells["compile-max"] == ""  # not measured
    assert (cells["GB/s"], cells["% copy"], cells["× compile"], cells["memory ÷ eager"]) == (
        "3200", "80", "1.20", "0.33",
    )  # fmt: skip
    assert cells["bar"] == "no: copy"
    fast = row(seconds={"cuda": 2.2e-4, "compile": 2e-4})
    assert report.cells(fast, CEILINGS)[-1] == "no: compile"
    small = row(operator="group_advantage", bytes=1e4, seconds={"cuda": 3e-6})
    assert report.cells(small, CEILINGS)[-1] == "no: launch"
    assert report.cells(row(seconds={"cuda": 2.2e-4}), CEILINGS)[-1] == "yes"


def test_what_was_not_measured_is_empty():
    assert report.cells(row(seconds={"eager": 1e-3}), CEILINGS)[-5:] == [""] * 5
    result = {"machine": {"gpu": "A card"}, "checks": [{"name": "build", "result": "failed (1)"}]}
    page = report.markdown(result)
    assert "| build | failed (1) |" in page
    assert "Ceilings" not in page


def test_files(tmp_path):
    result = {"machine": {"gpu": "A card"}, "checks": [], "ceilings": CEILINGS, "rows": [row()], "model": {}}
    page = report.write(result, "a-card", tmp_path)
    assert json.loads((tmp_path / "a-card.json").read_text()) == result
    table = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in table[1:]} == {len(report.COLUMNS) + 1}


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what happens without a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("no CUDA device")
