"""Builds the emulator: the sources of csrc/cuda and the bindings, compiled by g++ against tests/cuda/emulator.h."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "build" / "emulator"
# Reads and writes outside of tensors, misaligned packs, shifts and conversions out of range end the run.
SANITIZE = [
    "-fsanitize=address,alignment,shift,signed-integer-overflow,float-cast-overflow,integer-divide-by-zero",
    "-fno-sanitize-recover=all",
    "--param=asan-stack=0",  # fibers have stacks of their own
]


def address_sanitizer() -> str | None:
    """libasan, and libstdc++ whose exceptions it watches: to be loaded before Python. None where g++ has none."""
    names = ("libasan.so", "libstdc++.so.6")
    commands = [["g++", f"-print-file-name={name}"] for name in names]
    found = [subprocess.run(c, capture_output=True, text=True).stdout.strip() for c in commands]
    return " ".join(found) if all(map(os.path.isabs, found)) else None


def build_emulator() -> tuple[Path | None, str]:
    """The library, or None and the reason. Compiles only what changed."""
    if shutil.which("g++") is None:
        return None, "no g++ to compile the emulator with"
    import pybind11
    import torch

    FOLDER.mkdir(parents=True, exist_ok=True)
    torch_root = Path(torch.__file__).parent
    flags = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wno-unknown-pragmas",
        "-MMD",
        "-DFINPERCEP_CUDA",
        "-DFINPERCEP_EMULATE",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        f"-I{Path(__file__).parent}",
        f"-isystem{pybind11.get_include()}",
        f"-isystem{torch_root / 'include'}",
        f"-isystem{sysconfig.get_path('include')}",
    ]
    sanitize = SANITIZE if address_sanitizer() else []
    kernel_flags = [*flags, *sanitize, "-DFINPERCEP_ARCH=gpu", "-x", "c++"]
    csrc = REPOSITORY / "csrc"
    work = [(path, kernel_flags) for path in sorted(csrc.glob("cuda/*.cu"))]
    work += [(path, flags) for path in sorted(csrc.glob("torch_*.cpp"))]
    work.append((Path(__file__).parent / "emulator.cpp", flags))

    def compile_one(source: Path, options: list[str]) -> Path:
        target = FOLDER / f"{source.name}-torch-{torch.__version__}.o"
        if not _up_to_date(target):
            subprocess.run(["g++", *options, "-c", str(source), "-o", str(target)], check=True, cwd=REPOSITORY)
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(lambda one: compile_one(*one), work))
    library = FOLDER / "_C.so"
    torch_libraries = [f"-L{torch_root / 'lib'}", "-ltorch_cpu"]
    subprocess.run(["g++", "-shared", *sanitize, *map(str, objects), *torch_libraries, "-o", str(library)], check=True)
    return library, ""


def _up_to_date(target: Path) -> bool:
    made_from = target.with_suffix(".d")
    if not target.exists() or not made_from.exists():
        return False
    sources = made_from.read_text().split(":", 1)[1].replace("\\\n", " ").split()
    newest = target.stat().st_mtime
    return all(Path(s).exists() and Path(s).stat().st_mtime < newest for s in [*sources, __file__])
