"""The CUDA kernels, emulated on the CPU, under the tests of the operators and some of their own (emulated_cases.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.build import REPOSITORY, address_sanitizer, build_emulator

SUITES = (
    "tests/ops/test_modulate.py",
    "tests/ops/test_degradation_target.py",
    "tests/ops/test_advantage.py",
    "tests/ops/test_grpo.py",
    "tests/ops/test_sde.py",
    "tests/ops/test_rl_kernels.py",
    "tests/cuda/emulated_cases.py",
)


@pytest.fixture(scope="session")
def emulator() -> Path:
    library, reason = build_emulator()
    if library is None:
        pytest.skip(reason)
    return library


@pytest.mark.parametrize("suite", SUITES)
def test_on_the_emulator(emulator: Path, suite: str, record_property: pytest.RecordProperty) -> None:
    environment = {**os.environ, "FINPERCEP_EMULATOR": str(emulator), "PYTHONPATH": str(REPOSITORY)}
    sanitizer = address_sanitizer()
    if sanitizer is not None:
        environment |= {"LD_PRELOAD": sanitizer, "ASAN_OPTIONS": "detect_leaks=0"}
    # -s: the sanitizer's report, which ends the process, would be lost in what pytest captures.
    command = [sys.executable, "-m", "pytest", "-p", "tests.cuda.emulated", "-q", "-x", "-s", suite]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[:4000]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None, result.stdout[-4000:]
    record_property("emulated", int(passed[1]))
