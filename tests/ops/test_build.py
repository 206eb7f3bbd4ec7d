"""The build: what it says of itself, life without it, and one library under two versions of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finpercep import ops
from finpercep.ops import _backend

REPOSITORY = Path(__file__).resolve().parents[2]


def python(code: str, interpreter: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [interpreter, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )


def test_build_info(cpp: str) -> None:
    build = ops.backends()["build"]
    assert build["torch_target"] == "2.10"
    assert build["simd"] in build["simd_usable"]
    assert set(build["simd_usable"]) <= set(build["simd_compiled"])
    assert "baseline" in build["simd_usable"]
    assert build["compiler"].startswith(("gcc", "clang"))


def test_backends_explain_themselves() -> None:
    info = ops.backends()
    assert list(info["available"]) == list(_backend.BACKENDS)
    assert info["available"]["reference"] is True
    for name in ("cuda", "triton"):
        reason = info["available"][name]
        assert reason is True or "no CUDA device" in reason or "install" in reason
    assert info["chosen"]["cpu"] == ("cpp" if info["available"]["cpp"] is True else "reference")


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_backends_refuse_cpu_tensors(backend: str) -> None:
    with pytest.raises(
        RuntimeError,
        match=f"^backend='{backend}' (is not available: .*install|runs on CUDA tensors, got cpu)",
    ):
        ops.modulate(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1), (1, 1), backend=backend)


def test_without_cuda_extension() -> None:
    """Where it was not built or does not load, nothing else changes and `finpercep info` has the reason."""
    code = (
        "import sys; sys.modules['finpercep._C_cuda'] = None\n"
        "import torch\nfrom finpercep import ops\n"
        "info = ops.backends()\n"
        "assert info['build_cuda'] is None and info['chosen']['cpu'] in ('cpp', 'reference')\n"
        "torch.cuda.is_available = lambda: True\n"  # without a device, that is the reason given
        "print(ops.backends()['available']['cuda'])\n"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert "finpercep._C_cuda did not load" in result.stdout or "finpercep._C did not load" in result.stdout


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"^backend: expected one of .*, got 'cuda12'$"):
        ops.modulate(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1), (1, 1), backend="cuda12")


def test_cpp_is_for_cpu_tensors(cpp: str) -> None:
    with pytest.raises(RuntimeError, match="runs on CPU tensors, got meta"):
        _backend.resolve(cpp, "modulate", torch.device("meta"), torch.float32)
    assert _backend.resolve(None, "modulate", torch.device("meta"), torch.float32) == "reference"


def test_without_extension() -> None:
    """As on a machine without a compiler: the import works, the reference runs, insisting explains."""
    code = (
        "import sys; sys.modules['finpercep._C'] = None\n"
        "import torch\nfrom finpercep import ops\n"
        "assert ops.backends()['chosen'] == {'cpu': 'reference'}\n"
        "x, m = torch.ones(1, 4, 2), torch.full((1, 1, 4, 4), 0.5)\n"
        "assert (ops.modulate(x, m, (2, 2)) == 0.5).all()\n"
        "try:\n    ops.modulate(x, m, (2, 2), backend='cpp')\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("backend='cpp' is not available: the compiled extension finpercep._C did not load")
    assert "install a C++17 compiler" in result.stdout


def test_library_older_than_the_sources(cpp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _backend.has_cpp("an_operator_of_tomorrow")
    with pytest.raises(RuntimeError, match="older than these sources"):
        _backend.resolve(cpp, "an_operator_of_tomorrow", torch.device("cpu"), torch.float32)
    assert _backend.resolve(None, "an_operator_of_tomorrow", torch.device("cpu"), torch.float32) == "reference"


def test_simd_from_the_environment(cpp: str) -> None:
    code = "from finpercep import ops; print(ops.backends()['build']['simd'])"
    assert python(code, FINPERCEP_SIMD="baseline").stdout.strip() == "baseline"
    wrong = python("from finpercep import ops; print(ops.backends()['available']['cpp'])", FINPERCEP_SIMD="sse9")
    assert "FINPERCEP_SIMD: expected one of" in wrong.stdout
    assert "got 'sse9'" in wrong.stdout


def test_poisoning_reaches_the_kernels(cpp: str, poisoned: None) -> None:
    """The `poisoned` fixture is worth something: what operators allocate with really is NaN under it."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert torch.ops.finpercep.empty_like(torch.zeros(1000, dtype=dtype)).isnan().all()


def test_no_simd_code_leaks_into_the_baseline(cpp: str) -> None:
    """Inline functions shared between SIMD levels would be linked once, perhaps with AVX-512 in them."""
    from finpercep import _C

    symbols = subprocess.run(["nm", "-C", "--defined-only", str(_C.__file__)], capture_output=True, text=True)
    if symbols.returncode != 0:
        pytest.skip("no `nm` here to list the symbols of the library")
    levels = ("finpercep::baseline::", "finpercep::avx2::", "finpercep::avx512::")
    weak = [line for line in symbols.stdout.splitlines() if line.split()[1:2] in (["W"], ["V"])]
    assert not [line for line in weak if any(level in line for level in levels)]


def test_other_torch(cpp: str) -> None:
    """The library that this environment built, imported and used by another torch."""
    interpreter = os.environ.get("FINPERCEP_OTHER_PYTHON")
    if not interpreter:
        pytest.skip("FINPERCEP_OTHER_PYTHON names no interpreter with another torch")
    result = python("import torch; print(torch.__version__)", interpreter)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() != torch.__version__, "FINPERCEP_OTHER_PYTHON has the same torch"
    result = subprocess.run(
        [interpreter, str(REPOSITORY / "tests" / "ops" / "two_torch.py")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.rstrip().endswith("all operators agree")
