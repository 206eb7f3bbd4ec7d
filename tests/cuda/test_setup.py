"""setup.py's choices about CUDA: which nvcc, which architectures, which version, and what happens without."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from setuptools import Distribution, Extension

from tests.cuda.build import REPOSITORY

FAKE_NVCC = """#!/bin/sh
case $1 in
  --version) echo "Cuda compilation tools, release 12.8, V12.8.61" ;;
  --list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_100\\n' ;;
  *) echo "nvcc fatal: out of order" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, with none of its variables set and nothing on PATH."""
    for variable in ("CUDA_ARCHS", "NO_CUDA", "NO_EXT", "REQUIRE_CUDA", "REQUIRE_EXT"):
        monkeypatch.delenv(f"FINPERCEP_{variable}", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(REPOSITORY)
    spec = importlib.util.spec_from_file_location("finpercep_setup", REPOSITORY / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A CUDA_HOME whose nvcc answers questions and compiles nothing."""
    path = tmp_path / "bin" / "nvcc"
    path.parent.mkdir()
    path.write_text(FAKE_NVCC.replace("#!/bin/sh", "#!/bin/sh\nPATH=/usr/bin:/bin"))
    path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return str(path)


def test_nvcc_of_cuda_home(setup: ModuleType, nvcc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup.find_nvcc() == nvcc
    assert setup.cuda_version(nvcc) == "12.8"
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert setup.find_nvcc() is None


@pytest.mark.parametrize(
    ("asked", "archs"),
    [
        ("", ["80", "90", "100"]),  # of ours, those that this nvcc knows
        ("all", ["80", "90", "100"]),
        ("90", ["90"]),
        ("100;80", ["80", "100"]),
        ("90, 100", ["90", "100"]),
    ],
)
def test_architectures(setup: ModuleType, nvcc: str, monkeypatch, asked: str, archs: list[str]) -> None:
    monkeypatch.setenv("FINPERCEP_CUDA_ARCHS", asked)
    assert setup.cuda_archs(nvcc) == archs


def test_wrong_architectures(setup: ModuleType, nvcc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, message in (
        ("sm_90", "expected capabilities"),
        ("native", "no GPU is found here .*nvidia-smi"),
    ):
        monkeypatch.setenv("FINPERCEP_CUDA_ARCHS", asked)
        with pytest.raises(RuntimeError, match=f"^FINPERCEP_CUDA_ARCHS.*{message}"):
            setup.cuda_archs(nvcc)


def test_version(setup: ModuleType, nvcc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from finpercep import __version__

    assert setup.version() == __version__
    monkeypatch.setenv("FINPERCEP_REQUIRE_CUDA", "1")
    assert setup.version() == f"{__version__}+cu128"


def test_headers_of_pybind11(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own, before torch's; torch's alone where the package is missing."""
    flags = setup.cpp_flags()
    assert flags.index(setup.pybind11_headers()[0]) < flags.index(f"-isystem{torch_headers()}")
    monkeypatch.setitem(sys.modules, "pybind11", None)
    assert setup.pybind11_headers() == []
    assert f"-isystem{torch_headers()}" in setup.cpp_flags()
    assert (torch_headers() / "pybind11" / "pybind11.h").exists()


def torch_headers() -> Path:
    return Path(torch.__file__).parent / "include"


def test_a_killed_compiler_leaves_no_object(setup: ModuleType, tmp_path: Path) -> None:
    """Half an object would pass for one that is up to date."""
    compiler = tmp_path / "compiler"
    script = 'for last; do :; done\necho half > "$last"\necho killed >&2\nexit 137\n'
    compiler.write_text(f"#!/bin/sh\n{script}")
    compiler.chmod(0o755)
    command = setup.BuildExtension(Distribution())
    command.initialize_options()
    command.build_temp = str(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        command._compile([(setup.Unit(Path("a.cpp"), "a", ()), [str(compiler)])], "objects")
    assert not (tmp_path / "objects" / "a.o").exists()


def test_what_is_built(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [e.name for e in setup.extensions()] == ["finpercep._C", "finpercep._C_cuda"]
    monkeypatch.setenv("FINPERCEP_NO_CUDA", "1")
    assert [e.name for e in setup.extensions()] == ["finpercep._C"]
    monkeypatch.setenv("FINPERCEP_NO_EXT", "1")
    assert setup.extensions() == []


@pytest.mark.parametrize("home", ["/nowhere", "fake"])
def test_a_failure_is_explained(setup: ModuleType, nvcc: str, home: str, tmp_path, monkeypatch, capfd) -> None:
    """No nvcc, and one that fails: installed without the kernels, unless they are required."""
    if home != "fake":
        monkeypatch.setenv("CUDA_HOME", home)
    command = setup.BuildExtension(Distribution())
    command.initialize_options()
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    command.ext_map, command.inplace, command.package = {}, False, None
    extension = Extension("finpercep._C_cuda", sources=[])
    command.build_extension(extension)
    said = capfd.readouterr().err
    assert "the CUDA kernels were NOT built" in said
    assert ("no nvcc in CUDA_HOME" if home != "fake" else "out of order") in said
    assert not list((tmp_path / "lib" / "finpercep").iterdir())
    monkeypatch.setenv("FINPERCEP_REQUIRE_CUDA", "1")
    with pytest.raises(RuntimeError):
        command.build_extension(extension)
