"""The CUDA kernels, compiled for three architectures without a GPU: what they use of it, and that the library loads."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.cases import FAMILIES
from tests import budgets
from tests.budgets import Budget, budget
from tests.cuda.build import REPOSITORY

ARCHS = ("80", "90", "100")
PROMISES = {"wide_loads": True, "wide_stores": True, "in_flight": 2}  # and what is worth one
FOLDER = REPOSITORY / "build" / "cuda-check"  # kept: the next run compiles only what changed
# In the names of the kernels for mixtures of dtypes, element by element; for uint8 images, which load packs of eight;
# for half-precision velocities beside fp32 images, whose gradients are stored by four; and for half-precision maps,
# which are read by four.
ELEMENTWISE, EIGHT_BYTES = "3AnyE", "kernelIh"
FOUR_HALVES = re.compile("(sde_step_(fwd|bwd)|modulate_downsample)_kernelI(6__half|13__nv_bfloat16)(ffLi4|f)E")
# Loads of the tensors; CONSTANT are those of the tables in CUDA's cospi.
WIDE_LOAD = re.compile(r"\bLDG\.E(?!\S*CONSTANT)\S*\.128")
PACK_LOAD = re.compile(r"\bLDG\.E(?!\S*CONSTANT)\S*\.(64|128)")


def find_tool(name: str) -> str | None:
    """A CUDA program: on PATH, in CUDA_HOME, or in Triton's package."""
    places = [shutil.which(name), f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/{name}"]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        places.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name))
    return next((place for place in places if place and Path(place).exists()), None)


@pytest.fixture(scope="session")
def library() -> Path:
    """finpercep._C_cuda for ARCHS, built as setup.py builds it."""
    if find_tool("nvcc") is None:
        pytest.skip("no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")
    target = FOLDER / "_C_cuda.so"
    code = (
        "import sys; sys.path.insert(0, '.'); import setup\n"
        "from pathlib import Path; from setuptools import Distribution\n"
        "command = setup.BuildExtension(Distribution())\n"
        "command.build_temp = sys.argv[1]\n"
        "command.build_cuda(Path(sys.argv[2]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(FOLDER / "objects"), str(target)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "FINPERCEP_CUDA_ARCHS": ";".join(ARCHS)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "warning" not in result.stderr, result.stderr
    return target


@pytest.fixture(scope="session")
def cuobjdump() -> str:
    tool = find_tool("cuobjdump")
    if tool is None:
        pytest.skip("no cuobjdump: it comes with a CUDA toolkit, and with Triton")
    return tool


def lines(*command: str) -> Iterator[str]:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    yield from result.stdout.splitlines()


def short_name(mangled: str) -> str:
    """Of a kernel, without namespaces and template arguments."""
    found = re.search(r"\d([a-z][a-z_]*_kernel)", mangled)
    assert found is not None, mangled
    return found[1]


@pytest.fixture(scope="session")
def resources(library: Path, cuobjdump: str) -> dict[tuple[str, str], dict[str, int]]:
    """(architecture, mangled name) -> REG, STACK, SHARED, LOCAL, …"""
    found: dict[tuple[str, str], dict[str, int]] = {}
    arch = name = ""
    for line in lines(cuobjdump, "-res-usage", str(library)):
        if line.startswith("arch = "):
            arch = line.removeprefix("arch = sm_")
        elif line.strip().startswith("Function "):
            name = line.strip().removeprefix("Function ").rstrip(":")
        elif "REG:" in line:
            found[arch, name] = {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)}
    return found


def test_every_kernel_is_there_for_every_architecture(resources, record_property) -> None:
    names = {name for _, name in resources}
    assert set(resources) == {(arch, name) for arch in ARCHS for name in names}
    sources = "".join(path.read_text() for path in (REPOSITORY / "csrc" / "cuda").glob("*.cu"))
    written = set(re.findall(r"(\w+_kernel)\(\w+Params \w", sources))
    assert {short_name(name) for name in names} == written
    record_property("compiled", len(resources))


def test_nothing_is_spilled(resources) -> None:
    spilled = {key: use for key, use in resources.items() if use["STACK"] or use["LOCAL"]}
    assert not spilled


INSTRUCTION = re.compile(r"(?P<predicate>@\S+\s+)?(?P<name>\S+)\s*(?P<operands>.*)")
LEAVES = ("EXIT", "RET", "BAR")


def registers(operands: str) -> set[int]:
    named = re.findall(r"\bR(\d+)(\.64)?", operands)
    return {int(first) for first, _ in named} | {int(first) + 1 for first, pair in named if pair}


def most_in_flight(code: list[str], load: re.Pattern[str]) -> int:
    """The most loads that are issued one after the other before any register of theirs is touched."""
    waiting: list[set[int]] = []
    most = 0
    for instruction in code:
        found = INSTRUCTION.match(instruction)
        assert found is not None
        name, operands = found["name"], found["operands"]
        jumps = name.startswith("BRA") and not found["predicate"]
        if jumps or name.split(".")[0] in LEAVES:  # what follows is reached from elsewhere
            waiting = []
            continue
        touched, loaded = registers(operands), set[int]()
        if load.search(name):
            first = min(registers(operands.split(",")[0]))
            loaded = set(range(first, first + int(name.rsplit(".", 1)[1]) // 32))
        waiting = [one for one in waiting if not one & (touched | loaded)]
        if loaded:
            waiting.append(loaded)
        most = max(most, len(waiting))
    return most


@dataclass(frozen=True)
class Access:
    """How one variant of a kernel reads and writes memory; None where nothing is asked of it."""

    local: bool
    wide_loads: bool | None
    wide_stores: bool | None
    in_flight: int | None


def access_of(name: str, code: list[str]) -> Access:
    text = "\n".join(code)
    local = re.search(r"\b(LDL|STL)\b", text) is not None
    if ELEMENTWISE in name:
        return Access(local, None, None, None)
    eight_bytes, four_halves = EIGHT_BYTES in name, FOUR_HALVES.search(name)
    return Access(
        local,
        None if eight_bytes else WIDE_LOAD.search(text) is not None,
        None if four_halves and "bwd" in name else re.search(r"\bSTG\.E\S*\.128", text) is not None,
        most_in_flight(code, PACK_LOAD if eight_bytes or four_halves else WIDE_LOAD),
    )


@pytest.fixture(scope="session")
def accesses(library: Path, cuobjdump: str) -> dict[tuple[str, str], Access]:
    """By architecture and mangled name, from the instructions."""
    found: dict[tuple[str, str], Access] = {}
    for arch in ARCHS:
        name, code = "", list[str]()
        for line in (*lines(cuobjdump, "-sass", "-arch", f"sm_{arch}", str(library)), "Function : "):
            if "Function : " in line:
                if name:
                    found[arch, name] = access_of(name, code)
                name, code = line.split("Function : ")[1].strip(), []
            elif (instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line)) is not None:
                code.append(instruction[1])
    assert found
    return found


@pytest.fixture(scope="session")
def allowed(resources, accesses: dict[tuple[str, str], Access]) -> Budget:
    """The rows of `tests/budgets.json`."""
    return budget("cuda", lambda: measured(resources, accesses))


def measured(resources: dict[tuple[str, str], dict[str, int]], accesses: dict[tuple[str, str], Access]) -> Budget:
    """What all variants of a kernel on all architectures need, and what all of them can promise."""
    variants = defaultdict(list)
    for key in resources:
        variants[short_name(key[1])].append(key)
    rows: Budget = {}
    for kernel, keys in variants.items():
        rows[kernel] = {"registers": max(resources[key]["REG"] for key in keys)}
        for promise, least in PROMISES.items():
            found = [value for key in keys if (value := getattr(accesses[key], promise)) is not None]
            if found and min(found) >= least:
                rows[kernel][promise] = min(found)
    return rows


def test_registers_are_within_budget(resources, allowed: Budget) -> None:
    assert {short_name(name) for _, name in resources} == set(allowed)
    hungry = {
        key: use["REG"] for key, use in resources.items() if use["REG"] > allowed[short_name(key[1])]["registers"]
    }
    assert not hungry


def test_memory_is_accessed_128_bits_at_a_time(accesses: dict[tuple[str, str], Access], allowed: Budget) -> None:
    assert not [key for key, use in accesses.items() if use.local]
    for promise in ("wide_loads", "wide_stores"):
        promised = [key for key in accesses if allowed[short_name(key[1])].get(promise)]
        assert promised
        assert not [key for key in promised if getattr(accesses[key], promise) is False]


def test_loads_are_in_flight_together(accesses: dict[tuple[str, str], Access], allowed: Budget) -> None:
    """A branch per load, for its alignment, makes a thread wait for each before it asks for the next."""
    wanted = {key: allowed[short_name(key[1])].get("in_flight", 0) for key in accesses}
    assert any(wanted.values())
    waits = {k: u.in_flight for k, u in accesses.items() if u.in_flight is not None and u.in_flight < wanted[k]}
    assert not waits


def test_the_count_of_loads_in_flight_can_fail() -> None:
    load = "LDG.E.128 R{}, desc[UR6][R{}.64]".format
    together = [load(8, 2), load(12, 4), load(16, 6), "FADD R0, R8, R12"]
    one_by_one = [load(8, 2), "PRMT R20, R8, 0x7610, R20", load(8, 4), "PRMT R21, R9, 0x7632, R21"]
    assert most_in_flight(together, WIDE_LOAD) == 3
    assert most_in_flight(one_by_one, WIDE_LOAD) == 1


def test_library_loads_without_a_gpu(library: Path) -> None:
    """It registers every kernel where torch has CUDA, and says what is missing where it has not."""
    code = (
        "import importlib.util, sys, torch\n"
        "from finpercep import _C\n"
        "spec = importlib.util.spec_from_file_location('finpercep._C_cuda', sys.argv[1])\n"
        "try:\n    module = importlib.util.module_from_spec(spec)\n"
        "except ImportError as error:\n    print(error); sys.exit()\n"
        "spec.loader.exec_module(module)\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "for name in sys.argv[2:]:\n"
        "    assert has(f'finpercep::{name}', 'CUDA'), name\n"
        "    if hasattr(torch.ops.finpercep, f'{name}_backward'):\n"
        "        assert has(f'finpercep::{name}_backward', 'CUDA'), name\n"
        "print(module.build_info())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(library), *FAMILIES], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert result.returncode == 0, result.stderr
    import torch

    if torch.version.cuda is None:
        assert result.stdout.strip() == "this build of torch has no CUDA"
    else:
        assert "'archs': ['80', '90', '100']" in result.stdout


def test_writing_budgets_keeps_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "FILE", tmp_path / "budgets.json")
    monkeypatch.setenv("FINPERCEP_WRITE_BUDGET", "1")
    before = {
        "a_kernel": {"registers": 60, "in_flight": 4},
        "b_kernel": {"registers": 60},
        "gone_kernel": {"registers": 1},
    }
    budgets.write({"cuda": before, "triton": {}})
    found = {
        "a_kernel": {"registers": 64},
        "b_kernel": {"registers": 50},
        "new_kernel": {"registers": 7, "in_flight": 2},
    }
    expected = {
        "a_kernel": {"registers": 64, "in_flight": 4},
        "b_kernel": {"registers": 60},
        "new_kernel": {"registers": 7, "in_flight": 2},
    }
    assert budget("cuda", lambda: found) == expected
    monkeypatch.delenv("FINPERCEP_WRITE_BUDGET")
    assert budget("cuda", lambda: {}) == expected
