"""The CUDA kernels, compiled for three architectures without a GPU: what they use of it, and that the library loads."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cases import FAMILIES
from tests.cuda.build import REPOSITORY

ARCHS = ("80", "90", "100")
FOLDER = REPOSITORY / "build" / "cuda-check"  # kept: the next run compiles only what changed
BUDGET = Path(__file__).with_name("registers.json")
# Kernels that pass over large tensors: 128 bits at a time when reading, and when writing.
WIDE_LOADS = {
    "grpo_bwd_kernel",
    "grpo_fwd_kernel",
    "modulate_bwd_kernel",
    "modulate_fwd_kernel",
    "modulate_pool_fwd_kernel",
    "sde_step_bwd_kernel",
    "sde_step_fwd_kernel",
    "target_cosine_bwd_kernel",
    "target_cosine_kernel",
    "target_digit_kernel",
    "target_image_bwd_kernel",
    "target_minmax_kernel",
    "target_raw_kernel",
    "target_rescale_kernel",
}
WIDE_STORES = {
    "grpo_bwd_kernel",
    "modulate_bwd_kernel",
    "modulate_fwd_kernel",
    "modulate_map_bwd_kernel",
    "sde_step_bwd_kernel",
    "sde_step_fwd_kernel",
    "target_cosine_bwd_kernel",
    "target_image_bwd_kernel",
    "target_minmax_kernel",
    "target_raw_kernel",
    "target_rescale_kernel",
}
# How many packs a thread of theirs asks for before it waits for the first.
IN_FLIGHT = {
    "grpo_bwd_kernel": 3,
    "grpo_fwd_kernel": 4,
    "modulate_bwd_kernel": 8,
    "modulate_downsample_kernel": 5,
    "modulate_fwd_kernel": 4,
    "modulate_pool_fwd_kernel": 7,
    "sde_step_bwd_kernel": 4,
    "sde_step_fwd_kernel": 4,
    "target_cosine_bwd_kernel": 4,
    "target_cosine_kernel": 4,
    "target_image_bwd_kernel": 8,  # and one more for percentile
    "target_minmax_kernel": 6,
    "target_raw_kernel": 6,
    "target_rescale_kernel": 4,
}
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


def test_registers_are_within_budget(resources) -> None:
    """The most of any dtype and architecture; `FINPERCEP_WRITE_BUDGET=1 pytest tests/cuda` writes the file anew."""
    used: dict[str, int] = defaultdict(int)
    for (_, name), use in resources.items():
        used[short_name(name)] = max(used[short_name(name)], use["REG"])
    if os.environ.get("FINPERCEP_WRITE_BUDGET") == "1":
        BUDGET.write_text(json.dumps(used, indent=2, sort_keys=True) + "\n")
    budget = json.loads(BUDGET.read_text())
    assert set(used) == set(budget)
    assert {name: count for name, count in used.items() if count > budget[name]} == {}


@pytest.fixture(scope="session", params=ARCHS)
def machine_code(request: pytest.FixtureRequest, library: Path, cuobjdump: str) -> dict[str, list[str]]:
    """Mangled name -> instructions, of one architecture."""
    code: dict[str, list[str]] = {}
    name = ""
    for line in lines(cuobjdump, "-sass", "-arch", f"sm_{request.param}", str(library)):
        if "Function : " in line:
            name = line.split("Function : ")[1].strip()
            code[name] = []
        elif (found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line)) is not None:
            code[name].append(found[1])
    assert code
    return code


def test_memory_is_accessed_128_bits_at_a_time(machine_code) -> None:
    narrow_loads, narrow_stores = [], []
    for name, code in machine_code.items():
        text, kernel = "\n".join(code), short_name(name)
        assert not re.search(r"\b(LDL|STL)\b", text), f"local memory in {name}"
        if ELEMENTWISE in name:
            continue
        if kernel in WIDE_LOADS and EIGHT_BYTES not in name and not WIDE_LOAD.search(text):
            narrow_loads.append(name)
        four_halves = FOUR_HALVES.search(name) and "bwd" in name
        if kernel in WIDE_STORES and not four_halves and not re.search(r"\bSTG\.E\S*\.128", text):
            narrow_stores.append(name)
    assert not narrow_loads
    assert not narrow_stores


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


def test_loads_are_in_flight_together(machine_code) -> None:
    """A branch per load, for its alignment, makes a thread wait for each before it asks for the next."""
    waits = {}
    for name, code in machine_code.items():
        wanted = IN_FLIGHT.get(short_name(name), 0)
        if ELEMENTWISE in name or not wanted:
            continue
        load = PACK_LOAD if EIGHT_BYTES in name or FOUR_HALVES.search(name) else WIDE_LOAD
        found = most_in_flight(code, load)
        if found < wanted:
            waits[name] = found
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
