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

from tests.cuda.build import REPOSITORY

ARCHS = ("80", "90", "100")
FOLDER = REPOSITORY / "build" / "cuda-check"  # kept: the next run compiles only what changed
BUDGET = Path(__file__).with_name("registers.json")
# Kernels that pass over large tensors: 128 bits at a time when reading, and when writing.
WIDE_LOADS = {
    "grpo_bwd_kernel", "grpo_fwd_kernel", "modulate_bwd_kernel", "modulate_fwd_kernel", "modulate_pool_fwd_kernel",
    "sde_step_bwd_kernel", "sde_step_fwd_kernel", "target_cosine_bwd_kernel", "target_cosine_kernel",
    "target_digit_kernel", "target_image_bwd_kernel", "target_raw_kernel", "target_rescale_kernel",
    "target_sums_bwd_kernel",
}  # fmt: skip
WIDE_STORES = {
    "grpo_bwd_kernel", "modulate_bwd_kernel", "modulate_fwd_kernel", "modulate_map_bwd_kernel", "sde_step_bwd_kernel",
    "sde_step_fwd_kernel", "target_cosine_bwd_kernel", "target_image_bwd_kernel", "target_raw_kernel",
    "target_rescale_kernel",
}  # fmt: skip
# In the names of the kernels for mixtures of dtypes, element by element; for uint8 images, which load packs of eight;
# and for half-precision velocities beside fp32 images, whose gradients are stored by four.
ELEMENTWISE, EIGHT_BYTES = "3AnyE", "kernelIh"
FOUR_HALVES = re.compile("sde_step_bwd_kernelI(6__half|13__nv_bfloat16)ffLi4E")


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
    written = set(re.findall(r"(\w+_kernel)\((?:Modulate|Target|Advantage|Grpo|Sde)\w*Params \w", sources))
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


@pytest.mark.parametrize("arch", ARCHS)
def test_memory_is_accessed_128_bits_at_a_time(library: Path, cuobjdump: str, arch: str) -> None:
    loads: dict[str, bool] = {}
    stores: dict[str, bool] = {}
    name = ""
    for line in lines(cuobjdump, "-sass", "-arch", f"sm_{arch}", str(library)):
        if "Function : " in line:
            name = line.split("Function : ")[1].strip()
            loads[name] = stores[name] = False
        elif re.search(r"\bLDG\.E\S*\.128", line):
            loads[name] = True
        elif re.search(r"\bSTG\.E\S*\.128", line):
            stores[name] = True
        assert not re.search(r"\b(LDL|STL)\b", line), f"local memory in {name}"
    assert loads
    plain = [n for n in loads if ELEMENTWISE not in n]
    narrow_loads = [n for n in plain if short_name(n) in WIDE_LOADS and EIGHT_BYTES not in n and not loads[n]]
    assert not narrow_loads
    narrow_stores = [n for n in plain if short_name(n) in WIDE_STORES and not stores[n]]
    assert not [n for n in narrow_stores if not FOUR_HALVES.search(n)]


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
        "for name in ('modulate', 'degradation_target', 'grpo_loss', 'sde_step'):\n"
        "    assert has(f'finpercep::{name}', 'CUDA'), name\n"
        "    assert has(f'finpercep::{name}_backward', 'CUDA'), name\n"
        "assert has('finpercep::group_advantage', 'CUDA')\n"
        "print(module.build_info())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(library)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert result.returncode == 0, result.stderr
    import torch

    if torch.version.cuda is None:
        assert result.stdout.strip() == "this build of torch has no CUDA"
    else:
        assert "'archs': ['80', '90', '100']" in result.stdout
