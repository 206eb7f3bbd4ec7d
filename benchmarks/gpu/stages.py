"""Commands with a limit of time. What they printed is kept, and their whole process group ends, whatever happens."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType

from benchmarks.gpu import ROOT

KEPT = 4000  # characters of output that a failed command leaves in the results
_running: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True)
class Command:
    name: str
    arguments: Sequence[str]
    seconds: float
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    name: str
    status: int | None  # None: out of time
    seconds: float
    output: str

    def check(self) -> dict[str, str]:
        """{"name", "result"}, the result begins with "ok" or "failed"; with "output" if it failed."""
        last = next((line for line in reversed(self.output.splitlines()) if line.strip()), "")
        why = "out of time" if self.status is None else self.status
        verdict = "ok" if self.status == 0 else f"failed ({why})"
        row = {"name": self.name, "result": f"{verdict}, {self.seconds:.0f} s: {last.strip()[:200]}"}
        return row if self.status == 0 else {**row, "output": self.output[-KEPT:]}


def run(command: Command, show: bool = True) -> Outcome:
    """Run a command for `seconds` at most; `show` prints what it prints at once."""
    print(f"== {command.name}, {command.seconds:.0f} s: {shlex.join(command.arguments)}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        command.arguments,
        cwd=ROOT,
        env={**os.environ, **command.env},
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    _running.add(process)
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process, lines, show), daemon=True)
    reader.start()
    try:
        status: int | None = process.wait(max(1.0, command.seconds))
    except subprocess.TimeoutExpired:
        status = None
    finally:
        _end(process)
        _running.discard(process)
    reader.join(10)
    return Outcome(command.name, status, time.monotonic() - started, "".join(lines))


def together(commands: Sequence[Command]) -> list[Outcome]:
    """Run commands at the same time; what the failed ones printed last is shown at the end."""
    with ThreadPoolExecutor(max(1, len(commands))) as pool:
        outcomes = list(pool.map(lambda command: run(command, show=False), commands))
    for outcome in outcomes:
        print(outcome.check()["result"] if outcome.status == 0 else outcome.output[-KEPT:], flush=True)
    return outcomes


def end_all(number: int, frame: FrameType | None) -> None:
    """Signal handler: no command outlives the check."""
    for process in list(_running):
        _end(process)
    raise SystemExit(128 + number)


def _read(process: subprocess.Popen[str], lines: list[str], show: bool) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if show:
            print(line, end="", flush=True)


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # compilers and workers too; start_new_session made the group
    process.wait()
