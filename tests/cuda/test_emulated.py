"""The CUDA kernels, emulated on the CPU, under the tests of the operators and some of their own (emulated_cases.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda.build import REPOSITORY, address_sanitizer, build_emulator

# The operators' own tests, but for those of the library, and what only the emulator runs.
OF_THE_PACKAGE = ("test_backend.py", "test_build.py", "test_enumerations.py")
OPERATORS = sorted(path.name for path in (REPOSITORY / "tests" / "ops").glob("test_*.py"))
SUITES = (
    *(f"tests/ops/{name}" for name in OPERATORS if name not in OF_THE_PACKAGE),
    "tests/cuda/emulated_cases.py",
    "tests/cuda/emulated_offsets.py",
)


def run(library: Path, suite: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FINPERCEP_EMULATOR": str(library), "PYTHONPATH": str(REPOSITORY)}
    sanitizer = address_sanitizer()
    if sanitizer is not None:
        environment |= {"LD_PRELOAD": sanitizer, "ASAN_OPTIONS": "detect_leaks=0"}
    # -s: the sanitizer's report, which ends the process, would be lost in what pytest captures.
    command = [sys.executable, "-m", "pytest", "-p", "tests.cuda.emulated", "-x", "-s", suite]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The suites that were asked for, on all cores."""
    library, reason = build_emulator()
    if library is None:
        pytest.skip(reason)
    wanted = [suite for suite in SUITES if any(f"[{suite}]" in item.name for item in request.session.items)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield {suite: pool.submit(run, library, suite) for suite in wanted}


@pytest.mark.parametrize("suite", SUITES)
def test_on_the_emulator(runs, suite: str, record_property) -> None:
    result = runs[suite].result()
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[:4000]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None, result.stdout[-4000:]
    record_property("emulated", int(passed[1]))
