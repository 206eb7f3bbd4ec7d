"""Every Triton kernel against the reference under Triton's interpreter: the tests of `interpreted/`, in a process that
starts with TRITON_INTERPRET=1 (Triton decides when a kernel is defined).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


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
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], env=environment)
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", last)
    assert passed, last
    summary.append(f"interpreter: {last.strip('= ')}")
    assert int(passed[1]) >= 80, "tests have gone missing"
