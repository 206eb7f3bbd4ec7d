"""`python -m benchmarks.gpu`: build for the present card, check every backend, measure, write `results/<device>.*`.

One command of at most eight minutes, without network; needs torch >= 2.10, triton, numpy, transformers, pytest, a C++
compiler and nvcc. What fails is reported and the rest goes on; the exit status is 1 if anything failed. Results are
written cell by cell, so whatever ends the check early leaves what it had.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import ROOT, commands, report
from benchmarks.gpu.commands import Command
from benchmarks.gpu.engine import TIME_UP

RESULTS = ROOT / "benchmarks" / "results"
CACHES = ROOT / "build" / "gpu-check"
# When each stage ends at the latest, in seconds from the start; one that is done earlier leaves its time to the next.
BUILT, MEASURED, CHECKED, MODEL, ENDED = 110.0, 250.0, 380.0, 420.0, 475.0
TEST_PARTS = {"cuda": 3, "triton": 5}
RESTARTS = 8  # of a measuring process that crashed
PYTHON = sys.executable


def build() -> list[Command]:
    """Both extensions at once."""
    major, minor = torch.cuda.get_device_capability()
    required = {"FINPERCEP_REQUIRE_EXT": "1", "FINPERCEP_REQUIRE_CUDA": "1"}
    arguments = [PYTHON, "setup.py", "-q", "build_ext", "--inplace", "-j", "2"]
    return [Command("build", arguments, {**required, "FINPERCEP_CUDA_ARCHS": f"{major}{minor}"})]


def ahead() -> list[Command]:
    """Compile what needs no extension, in parts: inductor and Triton take longer than the measurements."""
    parts = min(8, max(1, (os.cpu_count() or 1) // 2))
    return [_ahead(str(part), str(parts)) for part in range(parts)]


def _ahead(*arguments: str) -> Command:
    command = [PYTHON, "-m", "benchmarks.gpu.warm", *arguments]
    return Command(f"compile ahead {' '.join(arguments)}", command, {"TORCHINDUCTOR_COMPILE_THREADS": "1"})


def pytest(*arguments: str) -> list[str]:
    options = ["-p", "no:cacheprovider", "--maxfail=20", "-o", "faulthandler_timeout=60"]
    return [PYTHON, "-m", "pytest", *options, *arguments, "tests/gpu"]


def tests() -> list[Command]:
    """The tests in parts, at the same time: most of their time is Triton's compiler, on one core each."""
    env = {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
    return [
        Command(f"tests of {backend} {i}/{count}", pytest("-k", backend, "--part", f"{i}/{count}"), env)
        for backend, count in TEST_PARTS.items()
        for i in range(1, count + 1)
    ]


def sanitizer() -> list[Command]:
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
            [tool, "--tool", mode, *own, *common, *pytest("-k", f"sanitizer and {backend}")],
            env,
        )
        for backend in TEST_PARTS
        for mode, own in modes.items()
    ]


def measure(part: str, path: Path, until: float) -> dict[str, str]:
    """Measure in a process of its own; where it breaks, another goes on behind the cell that broke it."""
    return _in_turns(f"measure {part}", ["benchmarks.gpu.measure", str(path), part], until, ended=(0,))


def engine(path: Path, until: float) -> dict[str, str]:
    """The scoring engine, likewise; a process that ends with 1 has made every check, and some do not hold."""
    return _in_turns("engine", ["benchmarks.gpu.engine", str(path)], until, ended=(0, 1, TIME_UP))


def _in_turns(name: str, words: Sequence[str], until: float, *, ended: Sequence[int]) -> dict[str, str]:
    """Run a module until it ends with one of these statuses; where it breaks, another process goes on."""
    for attempt in range(RESTARTS):
        left = until - time.monotonic()
        arguments = [PYTHON, "-m", *words, f"{left - 5:.0f}", *(["again"] if attempt else [])]
        (outcome,) = commands.run([Command(name, arguments)], until)
        if outcome.status in (*ended, None) or until - time.monotonic() < 20:
            break
    print(outcome.output, end="", flush=True)
    if outcome.status in (None, TIME_UP):  # no failure: the results say what is unfinished, and what was not reached
        return {"name": outcome.name, "result": f"its time was up, {outcome.seconds:.0f} s"}
    return outcome.check()


def check(path: Path, started: float) -> report.Row:
    """All stages in order, the results written after each."""
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    report.write(report.empty({**machine, "python": platform.python_version()}), path)

    def note(rows: Sequence[dict[str, str]]) -> report.Row:
        result = report.load(path)  # what was measured is in the file
        result["checks"] += rows
        report.write(result, path)
        return result

    # What was not compiled ahead is compiled when it is measured: no failure, and no row.
    outcomes = commands.run([*build(), *ahead()], started + BUILT)
    forget_tuning()
    note([outcomes[0].check()])
    note([measure("operators", path, started + MEASURED)])
    outcomes = commands.run([*tests(), *(watched := sanitizer()), _ahead("built")], started + CHECKED)
    forget_tuning()
    absent = [] if watched else [{"name": "compute-sanitizer", "result": "not found, not run"}]
    note([*(outcome.check() for outcome in outcomes[:-1]), *absent])
    note([measure("all", path, started + MODEL)])
    return note([engine(path, started + ENDED)])


def forget_tuning() -> None:
    """Remove inductor's choices among configurations: they were timed on a GPU that others used."""
    for path in CACHES.rglob("*.best_config"):
        path.unlink(missing_ok=True)


def main() -> int:
    started = time.monotonic()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to check here (make test runs the checks that need none)", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that no command outlives the check
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(CACHES / "inductor"), "TRITON_CACHE_DIR": str(CACHES / "triton")}
    path = RESULTS / f"{'-'.join(torch.cuda.get_device_name().lower().split())}.json"
    result = check(path, started)
    print(path.with_suffix(".md").read_text())
    return int(any(row["result"].startswith("failed") for row in result["checks"]))


if __name__ == "__main__":
    raise SystemExit(main())
