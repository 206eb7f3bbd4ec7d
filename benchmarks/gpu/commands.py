"""Commands at the same time, until a moment. Whatever happens, their process groups end; what they printed is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu import ROOT

LOGS = ROOT / "build" / "gpu-check" / "logs"
KEPT = 4000  # characters of output that a failed command leaves in the results


@dataclass(frozen=True)
class Command:
    name: str
    arguments: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name.replace(' ', '-').replace('/', '-')}.txt"


@dataclass(frozen=True)
class Outcome:
    name: str
    status: int | None  # None: out of time
    seconds: float
    output: str

    def check(self) -> dict[str, str]:
        """{"name", "result"}, the result begins with "ok" or "failed"; with "output" if it failed."""
        last = next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "")
        why = "out of time" if self.status is None else self.status
        verdict = "ok" if self.status == 0 else f"failed ({why})"
        row = {"name": self.name, "result": f"{verdict}, {self.seconds:.0f} s: {last[:200]}"}
        return row if self.status == 0 else {**row, "output": self.output[-KEPT:]}


def run(commands: Sequence[Command], until: float) -> list[Outcome]:
    """Run commands together; those that still run at `until` (of time.monotonic) are killed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    print(f"== {', '.join(c.name for c in commands)}: at most {until - started:.0f} s", flush=True)
    processes = [_start(command) for command in commands]
    outcomes = []
    try:
        for command, process in zip(commands, processes, strict=True):
            try:
                status: int | None = process.wait(max(1.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                status = None
                _kill(process)
            seconds, output = time.monotonic() - started, command.log.read_text(errors="replace")
            outcomes.append(Outcome(command.name, status, seconds, output))
            print(f"{command.name}: {outcomes[-1].check()['result']}", flush=True)
    finally:
        for process in processes:
            _kill(process)
    return outcomes


def _start(command: Command) -> subprocess.Popen[bytes]:
    with command.log.open("wb") as log:
        environment = {**os.environ, **command.env}
        return subprocess.Popen(
            command.arguments, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # compilers and workers too: start_new_session made the group
    process.wait()
