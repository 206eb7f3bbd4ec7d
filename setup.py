"""Build of the extensions `finpercep._C` and `finpercep._C_cuda`; the rest of the package is in pyproject.toml.

The kernels in csrc/cpu are compiled once per SIMD level (never for the building machine: the level is chosen at run
time), the bindings through torch's stable ABI. Without a working C++17 compiler the package installs without the
extension and runs on its PyTorch reference. The kernels in csrc/cuda are compiled where nvcc is found; neither a GPU
nor a CUDA build of torch is needed. Without nvcc, or if it fails, the package installs without them and says why.

CXX                     another C++ compiler
CUDA_HOME               where CUDA is, if not on PATH or in /usr/local/cuda
FINPERCEP_CUDA_ARCHS    compute capabilities, "90" or "80;90"; "all" (the default): 80;86;89;90;100;120; "native": those
                        of the GPUs in this machine
FINPERCEP_NO_EXT=1      build nothing
FINPERCEP_NO_CUDA=1     do not build the CUDA kernels
FINPERCEP_SANITIZE=1    for `make sanitize`: the C++ extension, under AddressSanitizer and UBSan, in build/sanitize
FINPERCEP_REQUIRE_EXT=1, FINPERCEP_REQUIRE_CUDA=1
                        a build that fails is an error; with the latter the version ends in +cu<CUDA's version>
MAX_JOBS                compilers at once
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
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
ALL_CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")
PLAIN_CPU_SOURCES = {"dispatch.cpp"}  # compiled once; all other kernels once per level

SANITIZED = Path("build", "sanitize")  # apart from the library that is installed
SANITIZE_FLAGS = [
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize=vptr",  # torch's types are hidden from it
    "-fno-sanitize-recover=all",
]

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
    bindings = [path for path in sorted(CSRC.glob("*.cpp")) if path.name != "library_cuda.cpp"]
    units = [Unit(path, path.stem, tuple(has)) for path in bindings]
    for path in sorted(CSRC.glob("cpu/*.cpp")):
        if path.name in PLAIN_CPU_SOURCES:
            units.append(Unit(path, f"cpu_{path.stem}", tuple(has)))
            continue
        for level, flags in SIMD_FLAGS.items():
            arch = (f"-DFINPERCEP_ARCH={level}", *has, *flags)
            units.append(Unit(path, f"cpu_{path.stem}_{level}", arch))
    return units


def enabled(variable: str) -> bool:
    return os.environ.get(variable) == "1"


def find_nvcc() -> str | None:
    """CUDA_HOME's, else the one on PATH, else /usr/local/cuda's."""
    home = os.environ.get("CUDA_HOME")
    candidates = [str(Path(home, "bin", "nvcc"))] if home else [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((path for path in candidates if path and Path(path).exists()), None)


def cuda_version(nvcc: str) -> str:
    """nvcc's, "13.0"."""
    found = re.search(r"release (\d+\.\d+)", run([nvcc, "--version"]))
    if found is None:
        raise RuntimeError(f"{nvcc} --version does not name a release")
    return found[1]


def cuda_archs(nvcc: str) -> list[str]:
    """Compute capabilities to compile for, lowest first."""
    asked = os.environ.get("FINPERCEP_CUDA_ARCHS") or "all"
    if asked == "all":
        known = set(re.findall(r"compute_(\d+)", run([nvcc, "--list-gpu-arch"])))
        archs = {arch for arch in ALL_CUDA_ARCHS if arch in known}  # an older nvcc does not know the newest
    elif asked == "native":
        try:
            found = run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
            archs = set(found.replace(".", "").split())
        except RuntimeError as error:
            raise RuntimeError(f"FINPERCEP_CUDA_ARCHS=native, but no GPU is found here ({error})") from error
    else:
        archs = set(asked.replace(";", " ").replace(",", " ").split())
    if not archs or not all(arch.isdigit() for arch in archs):
        raise RuntimeError(f"FINPERCEP_CUDA_ARCHS: expected capabilities ('80;90'), 'all' or 'native', got {asked!r}")
    return sorted(archs, key=int)


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

    def finalize_options(self) -> None:
        super().finalize_options()
        if enabled("FINPERCEP_SANITIZE"):
            self.inplace, self.build_lib, self.build_temp = False, str(SANITIZED), str(SANITIZED / "objects")

    def build_extension(self, ext: Extension) -> None:
        cuda = ext.name == "finpercep._C_cuda"
        library = Path(self.build_lib) / self._file_name(ext)
        library.parent.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)  # a failed build must not leave an older library in its place
        try:
            self.build_cuda(library) if cuda else self.build_cpu(library)
        except Exception as error:
            if enabled("FINPERCEP_REQUIRE_CUDA" if cuda else "FINPERCEP_REQUIRE_EXT"):
                raise
            explain("CUDA kernels were" if cuda else "compiled extension was", error, cuda)

    def copy_extensions_to_source(self) -> None:
        # An editable install copies the library beside the sources: nothing to copy if it was not built.
        self.extensions = [e for e in self.extensions if Path(self.build_lib, self._file_name(e)).exists()]
        super().copy_extensions_to_source()

    def _file_name(self, ext: Extension) -> str:
        return self.get_ext_filename(self.get_ext_fullname(ext.name))

    def build_cpu(self, library: Path) -> None:
        import torch

        sanitize = SANITIZE_FLAGS if enabled("FINPERCEP_SANITIZE") else []
        compile_command = [*compiler(), *cpp_flags(), *sanitize, "-MMD", "-c"]
        objects = self._compile([(unit, compile_command) for unit in cpu_units()], f"torch-{torch.__version__}")
        shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        run([*compiler(), *shared, *sanitize, *map(str, objects), *torch_libraries(), "-o", str(library)])

    def build_cuda(self, library: Path) -> None:
        import torch

        nvcc = find_nvcc()
        if nvcc is None:
            raise RuntimeError("no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
        version, archs = cuda_version(nvcc), cuda_archs(nvcc)
        host = ["-ccbin", compiler()[0], "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall"]
        # One pass over the source, as PTX of the lowest architecture, from which the machine code of each is made:
        # nothing in the kernels is particular to one. The PTX goes along, for GPUs that are not in the list.
        code = ",".join([f"compute_{archs[0]}", *(f"sm_{arch}" for arch in archs)])
        target = ["-gencode", f"arch=compute_{archs[0]},code=[{code}]"]
        kernel_flags = [
            "-std=c++17",
            "-O3",
            "--expt-relaxed-constexpr",
            "-DFINPERCEP_CUDA",
            "-DFINPERCEP_ARCH=gpu",
        ]
        bindings = (f'-DFINPERCEP_CUDA="{version}"', f'-DFINPERCEP_CUDA_ARCHS="{" ".join(archs)}"')
        compile_binding = [*compiler(), *cpp_flags(), "-MMD", "-c"]
        compile_kernel = [nvcc, *kernel_flags, *host, *target, "-MMD", "-c"]
        work = [(Unit(path, f"{path.stem}_kernel", ()), compile_kernel) for path in sorted(CSRC.glob("cuda/*.cu"))]
        for path in [CSRC / "library_cuda.cpp", *sorted(CSRC.glob("torch_*.cpp"))]:
            work.append((Unit(path, path.stem, bindings), compile_binding))
        objects = self._compile(work, f"torch-{torch.__version__}-cuda-{version}-{'-'.join(archs)}")
        # CUDA's runtime goes into the library (torch may bring another version of it) and stays hidden there.
        # libtorch stands for whatever this torch consists of: libtorch_cuda too, where it has that.
        link = [nvcc, "-shared", "-cudart", "static", *host, "-Xlinker", "--exclude-libs,ALL,--no-as-needed"]
        run([*link, *map(str, objects), *torch_libraries(), "-ltorch", "-o", str(library)])

    def _compile(self, work: list[tuple[Unit, list[str]]], folder: str) -> list[Path]:
        objects_dir = Path(self.build_temp, folder)
        objects_dir.mkdir(parents=True, exist_ok=True)

        def compile_unit(unit: Unit, command: list[str]) -> Path:
            target = objects_dir / f"{unit.object_name}.o"
            if self.force or not up_to_date(target):
                depends = ["-MF", str(target.with_suffix(".d"))]
                half = target.with_suffix(".part.o")  # a compiler that is killed leaves no half of an object
                run([*command, *unit.flags, *depends, str(unit.source), "-o", str(half)])
                half.replace(target)
            return target

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            return list(pool.map(lambda one: compile_unit(*one), work))


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def pybind11_headers() -> list[str]:
    """The package's own come before torch's, which are older; without the package (a bare GPU machine) torch's do."""
    try:
        import pybind11
    except ImportError:
        return []
    return [f"-isystem{pybind11.get_include()}"]


def cpp_flags() -> list[str]:
    import torch

    return [
        "-std=c++17",
        "-O3",
        "-fPIC",
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Wno-maybe-uninitialized",  # false alarms from inside GCC's own intrinsics
        "-Wno-psabi",  # vectors are passed within one file only
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
        f'-DFINPERCEP_TORCH_VERSION="{torch.__version__}"',
        *pybind11_headers(),
        f"-isystem{Path(torch.__file__).parent / 'include'}",
        f"-isystem{sysconfig.get_path('include')}",
    ]


def torch_libraries() -> list[str]:
    """No rpath: `import torch` has loaded them before an extension is."""
    import torch

    return [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]


def explain(what: str, error: Exception, cuda: bool) -> None:
    line = "=" * 100
    instead = "GPUs get Triton or plain PyTorch" if cuda else "it runs on its PyTorch reference, more slowly"
    advice = "a CUDA toolkit (or set CUDA_HOME)" if cuda else "a C++17 compiler (or set CXX)"
    print(
        f"\n{line}\nfinpercep: the {what} NOT built; the package installs without: {instead}.\n"
        f"Reason: {error}\nInstall {advice} and reinstall to get it.\n{line}\n",
        file=sys.stderr,
        flush=True,
    )


def run(command: list[str]) -> str:
    """Standard output. Raises RuntimeError that says why; warnings are passed on."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError as error:
        raise RuntimeError(f"cannot run {command[0]!r}: {error}") from error
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{result.stderr.strip()}")
    if result.stderr.strip():
        print(result.stderr.strip(), file=sys.stderr)
    return result.stdout


def extensions() -> list[Extension]:
    names = [] if enabled("FINPERCEP_NO_EXT") else ["finpercep._C"]
    if names and not enabled("FINPERCEP_NO_CUDA") and not enabled("FINPERCEP_SANITIZE"):
        names.append("finpercep._C_cuda")
    return [Extension(name, sources=[], optional=True) for name in names]


def version() -> str:
    """finpercep.__version__, with CUDA's version behind it where the CUDA kernels are sure to be in."""
    base = re.search(r'^__version__ = "(.+)"$', Path("finpercep", "__init__.py").read_text(), re.MULTILINE)
    assert base is not None
    nvcc = find_nvcc()
    if not enabled("FINPERCEP_REQUIRE_CUDA") or nvcc is None:
        return base[1]
    return f"{base[1]}+cu{cuda_version(nvcc).replace('.', '')}"


if __name__ == "__main__":  # so it is for every installer; tests import this file
    os.chdir(ROOT)  # paths to sources are relative: setuptools wants them so
    setup(
        version=version(),
        # finpercep.kernels lives in kernels/, where discovery does not look; pyproject.toml maps its folder.
        packages=[*find_packages(include=["finpercep*"]), "finpercep.kernels"],
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildExtension},
    )
