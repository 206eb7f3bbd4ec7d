"""`python -m benchmarks.gpu`: build for the present card, check every backend, measure, write `results/<device>.*`.

One command, no network; needs torch >= 2.10, triton, numpy, transformers, pytest, a C++ compiler and nvcc. A stage that
fails is reported and the next one runs; the exit status is 1 if any failed. Results are written as they come, so
whatever ends the check early leaves what it had. As two commands, on a machine that stops long ones:

    python -m benchmarks.gpu --no-checks && python -m benchmarks.gpu --checks-only

The second adds to the results of the first, as long as machine and sources are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu import ROOT, report, stages, warm
from benchmarks.gpu.stages import Command

RESULTS = ROOT / "benchmarks" / "results"
CACHES = ROOT / "build" / "gpu-check"
# What each stage may take of the time that is left, in relation to those after it; in this order, so that what is worth
# most comes first. Expected on 16 cores and a recent card, in seconds: build 60, rows 80, tests 70, max-autotune 120,
# model 40, sanitizer 60.
SHARES = {"build": 50, "rows": 60, "tests": 35, "rest": 30, "model": 20, "sanitizer": 25}
CHECKS, MEASUREMENTS = {"tests", "sanitizer"}, {"rows", "rest", "model"}
WARM_SECONDS = 90.0
TEST_PARTS = (*(("cuda", f"{i}/3") for i in (1, 2, 3)), *(("triton", f"{i}/5") for i in (1, 2, 3, 4, 5)))
RESTARTS = 8  # of a measuring process that crashed
PYTHON = sys.executable


def machine() -> dict[str, str]:
    """What results depend on."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "sources": fingerprint(),
    }


def fingerprint() -> str:
    """Changes with every source that results depend on."""
    digest = hashlib.sha256()
    for folder in ("csrc", "kernels", "finpercep", "benchmarks", "tests/gpu"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def build(seconds: float) -> list[Command]:
    """Both extensions at once."""
    major, minor = torch.cuda.get_device_capability()
    env = {
        "FINPERCEP_REQUIRE_EXT": "1",
        "FINPERCEP_REQUIRE_CUDA": "1",
        "FINPERCEP_CUDA_ARCHS": f"{major}{minor}",
    }
    return [Command("build", [PYTHON, "setup.py", "-q", "build_ext", "--inplace", "-j", "2"], seconds, env)]


def compile_ahead(seconds: float) -> list[Command]:
    """What needs no extension, in parts."""
    parts = min(8, (os.cpu_count() or 1) // 2)
    return [ahead(min(seconds, WARM_SECONDS), str(part), str(parts)) for part in range(parts)]


def ahead(seconds: float, *arguments: str) -> Command:
    """Compile measurements while nothing is timed."""
    env = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [PYTHON, "-m", "benchmarks.gpu.warm", *arguments]
    return Command(f"compile ahead {' '.join(arguments)}", command, seconds, env)


def pytest(backend: str, *arguments: str) -> list[str]:
    options = ["-p", "no:cacheprovider", "--maxfail=20", "-o", "faulthandler_timeout=60"]
    return [PYTHON, "-m", "pytest", *options, "--backend", backend, *arguments, "tests/gpu"]


def tests(seconds: float) -> list[Command]:
    """The tests in parts, at the same time: most of their time is Triton's compiler, on one core each."""
    env = {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
    return [
        Command(f"tests of {backend} {part}", pytest(backend, "--part", part), seconds, env)
        for backend, part in TEST_PARTS
    ]


def sanitizer(seconds: float) -> list[Command]:
    """Memory and races of small calls. Without torch's cache of memory, which hides what lies between tensors."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return []
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    common = ["--error-exitcode", "1", "--target-processes", "application-only"]
    modes = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}
    return [
        Command(
            f"{mode} of {backend}",
            [tool, "--tool", mode, *options, *common, *pytest(backend, "-k", "sanitizer")],
            seconds,
            env,
        )
        for backend in ("cuda", "triton")
        for mode, options in modes.items()
    ]


def measured(part: str, path: Path, seconds: float) -> dict[str, str]:
    """Measure in a process of its own; where it breaks, another goes on behind the cell that broke it."""
    end = time.monotonic() + seconds
    for _ in range(RESTARTS):
        left = end - time.monotonic()
        arguments = [PYTHON, "-m", "benchmarks.gpu.measure", str(path), part, f"{left - 5:.0f}"]
        outcome = stages.run(Command(f"measure {part}", arguments, left))
        if outcome.status in (0, None) or end - time.monotonic() < 20:
            break
    if outcome.status is None:  # no failure: a cell is noted as unfinished, those behind it are empty
        return {"name": outcome.name, "result": f"its time was up, {outcome.seconds:.0f} s"}
    return outcome.check()


def run_stage(name: str, seconds: float, path: Path, measuring: bool) -> list[dict[str, str]]:
    """The checks of one stage."""
    if name in MEASUREMENTS:
        return [measured(name, path, seconds)]
    if name == "sanitizer":
        commands, extra = sanitizer(seconds), []
        if not commands:
            return [{"name": "compute-sanitizer", "result": "not found, not run"}]
    elif name == "build":
        commands, extra = build(seconds), compile_ahead(seconds) if measuring else []
    else:
        commands, extra = tests(seconds), [ahead(seconds, "built")] if measuring else []
    outcomes = stages.together([*commands, *extra])
    warm.forget_tuning(CACHES)
    # What was not compiled ahead is compiled when it is measured: no failure.
    return [outcome.check() for outcome in outcomes[: len(commands)]]


def check(wanted: Sequence[str], path: Path, time_left: Callable[[], float]) -> report.Row:
    """Run the stages in order and write the results after each."""
    result = report.load(path, machine())
    measuring = bool(MEASUREMENTS & set(wanted))
    if measuring:
        result |= {"ceilings": {}, "rows": [], "model": {}}
    if "tests" in wanted:
        result["checks"] = [row for row in result["checks"] if row["name"].startswith("measure")]
    report.write(result, path)
    for index, name in enumerate(wanted):
        seconds = time_left() * SHARES[name] / sum(SHARES[later] for later in wanted[index:])
        rows = run_stage(name, seconds, path, measuring)
        result = report.load(path, result["machine"])  # what was measured is in the file
        for row in rows:
            report.put_check(result, row)
        report.write(result, path)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (default 8)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write to (default: benchmarks/results)"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--no-checks", action="store_true", help="build and measure")
    only.add_argument("--checks-only", action="store_true", help="build, test, and run compute-sanitizer")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "no CUDA device: nothing to check here (make test runs the checks that need none)",
            file=sys.stderr,
        )
        return 1
    signal.signal(signal.SIGTERM, stages.end_all)
    end = time.monotonic() + 60 * arguments.minutes - 5
    left_out = CHECKS if arguments.no_checks else MEASUREMENTS if arguments.checks_only else set()
    os.environ |= warm.caches(CACHES)
    name = "-".join(torch.cuda.get_device_name().lower().split())
    path = (arguments.results / f"{name}.json").resolve()
    result = check([n for n in SHARES if n not in left_out], path, lambda: end - time.monotonic())
    print(path.with_suffix(".md").read_text())
    return int(any(row["result"].startswith("failed") for row in result["checks"]))


if __name__ == "__main__":
    raise SystemExit(main())
