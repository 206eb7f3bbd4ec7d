"""Build of the compiled extension `finpercep._C`; everything else about the package is in pyproject.toml.

The kernels in csrc/cpu are compiled once per SIMD level (never for the building machine: the level is chosen at run
time), the bindings through torch's stable ABI. Without a working C++17 compiler the package installs without the
extension and runs on its PyTorch reference. FINPERCEP_NO_EXT=1 skips the extension, CXX names another compiler.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = Path("csrc")
TORCH_TARGET = "0x020a000000000000"  # 2.10, the oldest torch that a build runs with
PLAIN_CPU_SOURCES = {"dispatch.cpp"}  # compiled once; all other kernels once per level

SIMD_FLAGS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    avx2 = ["-mavx2", "-mfma", "-mf16c"]
    avx512 = [*avx2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
    SIMD_FLAGS |= {"avx2": avx2, "avx512": avx512}


@dataclass(frozen=True)
class Unit:
    """One compilation: a source, the name of its object, and the flags that belong to it alone."""

    source: Path
    object_name: str
    flags: tuple[str, ...]


def cpu_units() -> list[Unit]:
    has = [f"-DFINPERCEP_HAS_{level.upper()}" for level in SIMD_FLAGS if level != "baseline"]
    units = [Unit(path, path.stem, tuple(has)) for path in sorted(CSRC.glob("*.cpp"))]
    for path in sorted(CSRC.glob("cpu/*.cpp")):
        if path.name in PLAIN_CPU_SOURCES:
            units.append(Unit(path, f"cpu_{path.stem}", tuple(has)))
            continue
        for level, flags in SIMD_FLAGS.items():
            arch = (f"-DFINPERCEP_ARCH={level}", *has, *flags)
            units.append(Unit(path, f"cpu_{path.stem}_{level}", arch))
    return units


def up_to_date(target: Path) -> bool:
    """Whether an object is newer than this script and all that the compiler said it was made from."""
    made_from = target.with_suffix(".d")
    if not target.exists() or not made_from.exists():
        return False
    sources = made_from.read_text().split(":", 1)[1].replace("\\\n", " ").split()
    newest = target.stat().st_mtime
    return all(Path(s).exists() and Path(s).stat().st_mtime < newest for s in [*sources, __file__])


class BuildExtension(build_ext):
    """Compiles in parallel, rebuilds only what changed, and turns any failure into an install without extension."""

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except Exception as error:
            if os.environ.get("FINPERCEP_REQUIRE_EXT") == "1":
                raise
            self._explain(error)

    def copy_extensions_to_source(self) -> None:
        # An editable install copies the library beside the sources: nothing to copy if it was not built.
        self.extensions = [e for e in self.extensions if Path(self.build_lib, self._file_name(e)).exists()]
        super().copy_extensions_to_source()

    def _file_name(self, ext: Extension) -> str:
        return self.get_ext_filename(self.get_ext_fullname(ext.name))

    def _build(self, ext: Extension) -> None:
        library = Path(self.build_lib) / self._file_name(ext)
        library.parent.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)  # a failed build must not leave an older library in its place
        import pybind11
        import torch

        torch_root = Path(torch.__file__).parent
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        flags = [
            "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wall",
            "-Wno-maybe-uninitialized",  # false alarms from inside GCC's own intrinsics
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
            f'-DFINPERCEP_TORCH_VERSION="{torch.__version__}"',
            f"-isystem{pybind11.get_include()}",  # PyPI's: torch bundles an older one
            f"-isystem{torch_root / 'include'}",
            f"-isystem{sysconfig.get_path('include')}",
        ]  # fmt: skip
        objects_dir = Path(self.build_temp, f"torch-{torch.__version__}")
        objects_dir.mkdir(parents=True, exist_ok=True)

        def compile_unit(unit: Unit) -> Path:
            target = objects_dir / f"{unit.object_name}.o"
            if self.force or not up_to_date(target):
                run([*compiler, *flags, *unit.flags, "-MMD", "-c", str(unit.source), "-o", str(target)])
            return target

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            objects = list(pool.map(compile_unit, cpu_units()))
        shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        # No rpath: `import torch` has loaded libtorch_cpu before finpercep._C is.
        torch_libraries = [f"-L{torch_root / 'lib'}", "-ltorch_cpu"]
        run([*compiler, *shared, *map(str, objects), *torch_libraries, "-o", str(library)])

    def _explain(self, error: Exception) -> None:
        line = "=" * 100
        print(
            f"\n{line}\nfinpercep: the compiled extension was NOT built; the package runs on its PyTorch reference, "
            f"more slowly.\nReason: {error}\nInstall a C++17 compiler (or set CXX) and reinstall to get it.\n{line}\n",
            file=sys.stderr,
            flush=True,
        )


def run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError as error:
        raise RuntimeError(f"cannot run the compiler {command[0]!r}: {error}") from error
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{result.stderr.strip()}")
    if result.stderr.strip():
        print(result.stderr.strip(), file=sys.stderr)


def extensions() -> list[Extension]:
    if os.environ.get("FINPERCEP_NO_EXT") == "1":
        return []
    return [Extension("finpercep._C", sources=[], optional=True)]


os.chdir(ROOT)  # paths to sources are relative: setuptools wants them so
setup(
    # finpercep.kernels lives in kernels/, where discovery does not look; pyproject.toml maps its folder.
    packages=[*find_packages(include=["finpercep*"]), "finpercep.kernels"],
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension},
)
