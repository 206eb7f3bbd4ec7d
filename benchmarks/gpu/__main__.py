"""`python -m benchmarks.gpu`: build for the present card, check every backend, measure, write `results/<device>.*`.

One command, no network; needs torch >= 2.10, triton, numpy, transformers, pytest, a C++ compiler and nvcc. A stage that
fails is reported and the next one runs; the exit status is 1 if any failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
TESTS = ["tests/gpu"]


def stage(name: str, command: list[str], limit: float, env: dict[str, str] | None = None) -> dict[str, str]:
    """Run a command, show its output, return {"name", "result"}; the result begins with "ok" or "failed"."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}, timeout=max(1.0, limit),
                              capture_output=True, text=True)  # fmt: skip
        output, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired:
        output, status = "", "out of time"
    print(output[-6000:], flush=True)
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    verdict = "ok" if status == 0 else f"failed ({status})"
    return {"name": name, "result": f"{verdict}, {time.monotonic() - started:.0f} s: {last}"}


def checks(left: Callable[[], float]) -> list[dict[str, str]]:
    """Build, correctness, memory checker."""
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    require = {"FINPERCEP_REQUIRE_EXT": "1", "FINPERCEP_REQUIRE_CUDA": "1", "FINPERCEP_CUDA_ARCHS": "native"}
    out = [stage("build", build, left(), require)]
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", *TESTS]
    out.append(stage("backends against fp64", pytest, min(left(), 240)))
    if shutil.which("compute-sanitizer"):
        sanitizer = [
            "compute-sanitizer",
            "--tool",
            "memcheck",
            "--error-exitcode",
            "1",
            "--target-processes",
            "all",
        ]
        out.append(stage("compute-sanitizer", [*sanitizer, *pytest, "-k", "sanitizer"], min(left(), 90)))
    else:
        out.append({"name": "compute-sanitizer", "result": "not found, not run"})
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (default 8)")
    parser.add_argument("--no-checks", action="store_true", help="only measure")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "no CUDA device: nothing to check here (make test runs the checks that need none)",
            file=sys.stderr,
        )
        return 1
    deadline = time.monotonic() + 60 * arguments.minutes

    def time_left() -> float:
        return deadline - time.monotonic()

    result: dict = {
        "machine": {
            "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "checks": [] if arguments.no_checks else checks(time_left),
    }  # fmt: skip
    from benchmarks.gpu import measure, report
    from benchmarks.gpu.cases import CASES

    result.update(measure.run(CASES, lambda: time_left() - 20, lambda text: print(text, flush=True)))
    name = "-".join(result["machine"]["gpu"].lower().split())
    page = report.write(result, name)
    print(page.read_text())
    return int(any(check["result"].startswith("failed") for check in result["checks"]))


if __name__ == "__main__":
    raise SystemExit(main())
