"""Every Triton kernel against the reference under Triton's interpreter, in a process that starts with
TRITON_INTERPRET=1 (Triton decides when a kernel is defined).

These are the tests of `interpreted/`, and of the tests on GPUs those that check values, gradients and registration of
every operator of the table in `benchmarks/cases.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
OF_THE_TABLE = ("test_against_fp64", "test_views", "test_opcheck")


def test_kernels_under_the_interpreter(summary: list[str]) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rfE",
        "-p",
        "no:cacheprovider",
        str(HERE / "interpreted"),
        *(f"{HERE.parent / 'gpu' / 'test_backends.py'}::{name}" for name in OF_THE_TABLE),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], env=environment)
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", last)
    assert passed, last
    summary.append(f"interpreter: {last.strip('= ')}")
    assert int(passed[1]) >= 200, "tests have gone missing"
