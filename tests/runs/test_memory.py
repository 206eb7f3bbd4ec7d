"""Memory that a process keeps: measured by the page faults of a second block."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from finpercep.runs import memory

BLOCK = 96 << 20
FAULTS = f"""
import resource, sys
from finpercep.runs.memory import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "keep" else None
block = b"x" * {BLOCK}
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = b"x" * {BLOCK}
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def run(way: str) -> tuple[str, int]:
    environment = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "GLIBC_TUNABLES")}
    words = [sys.executable, "-c", FAULTS, way]
    done, faults = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return done, int(faults)


@needs_glibc
def test_a_second_block_costs_no_page_faults() -> None:
    plain, kept = run("plain"), run("keep")
    assert kept[0] == "True"
    assert plain[1] >= 20  # 96 MiB are 48 huge pages, or 24,576 small ones
    assert kept[1] * 10 <= plain[1]


@needs_glibc
@pytest.mark.parametrize("name", [*VARIABLES, "GLIBC_TUNABLES"])
def test_what_the_environment_chose_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("mallopt was reached"))
    monkeypatch.setenv(name, "glibc.malloc.mmap_max=8")
    assert memory.keep_freed_memory() is False


def test_other_tunables_are_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    class Libc:
        @staticmethod
        def mallopt(what: int, value: int) -> int:
            calls.append((what, value))
            return 1

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_shstk=off")
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Libc)
    assert memory.keep_freed_memory() is True
    assert calls == [(-4, 0), (-1, -1)]


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_a_library_without_mallopt_changes_nothing(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert memory.keep_freed_memory() is False
