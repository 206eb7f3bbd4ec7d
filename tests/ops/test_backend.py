"""Which backend runs: the order, the fall-backs, and what an explicit backend that cannot run says."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cases import FAMILIES
from finpercep import ops
from finpercep.ops import _backend

REPOSITORY = Path(__file__).resolve().parents[2]
CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch):
    """Pretends that these backends are there, and no others."""

    def pretend(*names: str) -> None:
        monkeypatch.setattr(_backend, "_has_triton", "triton" in names)
        monkeypatch.setattr(_backend, "_cuda_operators", {"modulate"} if "cuda" in names else set())
        monkeypatch.setattr(_backend, "_cuda_extension", object() if "cuda" in names else None)
        monkeypatch.setattr(_backend, "_extension", object() if "cpp" in names else None)
        monkeypatch.setattr(_backend, "_has_compiler", True)
        monkeypatch.setattr(_backend, "_oldest_gpu", 80)
        monkeypatch.setattr(_backend, "_capability", lambda index: 90)

    return pretend


@pytest.mark.parametrize(
    ("names", "on_cuda"),
    [
        (("cuda", "triton", "cpp"), "cuda"),
        (("triton", "cpp"), "triton"),
        (("triton",), "triton"),
        (("cpp",), "reference"),
        ((), "reference"),
    ],
)
def test_the_fastest_that_is_there(present, names, on_cuda) -> None:
    present(*names)
    assert _backend.resolve(None, "modulate", CUDA, torch.bfloat16) == on_cuda
    assert _backend.resolve(None, "modulate", META, torch.bfloat16) == "reference"
    assert _backend.resolve(None, "modulate", CUDA, torch.float8_e4m3fn) == "reference"
    if "cpp" not in names:
        assert _backend.resolve(None, "modulate", CPU, torch.float32) == "reference"


def test_an_operator_without_cuda_kernel_falls_back(present) -> None:
    present("cuda", "triton", "cpp")
    assert _backend.resolve(None, "an_operator_of_tomorrow", CUDA, torch.float32) == "triton"


@pytest.mark.parametrize(
    ("backend", "names", "message"),
    [
        ("triton", (), "^backend='triton' is not available: Triton is not installed; `pip install triton`"),
        (
            "cuda",
            ("triton",),
            r"^backend='cuda' is not available: .*finpercep\._C did not load .*; install a C\+\+17",
        ),
        (
            "cuda",
            ("cpp",),
            r"^backend='cuda' is not available: .*_C_cuda did not load .*; install the CUDA toolkit",
        ),
        ("cpp", (), r"^backend='cpp' is not available: .*; install a C\+\+17 compiler and reinstall"),
    ],
)
def test_an_explicit_backend_that_is_not_there_says_what_to_install(present, backend, names, message) -> None:
    present(*names)
    with pytest.raises(RuntimeError, match=message):
        ops.modulate(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1), (1, 1), backend=backend)


def test_a_cuda_library_that_lacks_an_operator(present) -> None:
    present("cuda", "cpp")
    with pytest.raises(RuntimeError, match="_C_cuda has no kernel for an_operator_of_tomorrow; install the CUDA"):
        _backend.resolve("cuda", "an_operator_of_tomorrow", CUDA, torch.float32)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gpu_backends_are_for_cuda_tensors(present, backend) -> None:
    present("cuda", "triton", "cpp")
    for device in (CPU, META):
        with pytest.raises(RuntimeError, match=f"backend='{backend}' runs on CUDA tensors, got {device}"):
            _backend.resolve(backend, "modulate", device, torch.float32)
    with pytest.raises(RuntimeError, match=f"backend='{backend}' supports .*, got complex64"):
        _backend.resolve(backend, "modulate", CUDA, torch.complex64)
    assert _backend.resolve(backend, "modulate", CUDA, torch.float32) == backend


def test_a_gpu_older_than_the_kernels_falls_back(present, monkeypatch: pytest.MonkeyPatch) -> None:
    present("cuda", "triton", "cpp")
    monkeypatch.setattr(_backend, "_capability", lambda index: 75)
    assert _backend.resolve(None, "modulate", CUDA, torch.float32) == "triton"
    with pytest.raises(RuntimeError, match=r"from sm_80, cuda is sm_75; reinstall .*FINPERCEP_CUDA_ARCHS=native"):
        _backend.resolve("cuda", "modulate", CUDA, torch.float32)


def test_triton_without_a_compiler_falls_back(present, monkeypatch: pytest.MonkeyPatch) -> None:
    present("triton")
    monkeypatch.setattr(_backend, "_has_compiler", False)
    monkeypatch.setattr(_backend, "_interpreted", False)
    assert _backend.resolve(None, "modulate", CUDA, torch.float32) == "reference"
    with pytest.raises(RuntimeError, match="needs a C compiler to launch its kernels; install gcc, or set CC"):
        _backend.resolve("triton", "modulate", CUDA, torch.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_second_order_gradients_are_an_error_and_not_wrong(name: str) -> None:
    if not _backend.has_cpp(name):
        pytest.skip(f"operator {name} is not built")
    work = FAMILIES[name].small[0].make(torch.float32)
    if not work.differentiable:
        pytest.skip(f"{name} has no gradient")
    for backend in ("cpp", "reference"):
        leaves = work.leaves(True)
        x = leaves[work.differentiable[0]]
        total = sum(out.square().sum() for out in work.function(backend)(*leaves) if out.requires_grad)
        assert isinstance(total, torch.Tensor)
        (grad,) = torch.autograd.grad(total, x, create_graph=True)
        if backend == "reference":
            (second,) = torch.autograd.grad(grad.sum(), x)
            assert second.isfinite().all()
            continue
        with pytest.raises(RuntimeError, match=f"{name}: no gradients of second order; use backend='reference'"):
            torch.autograd.grad(grad.sum(), x)


def test_info_explains_every_backend() -> None:
    info = ops.backends()
    assert list(info["available"]) == list(_backend.BACKENDS)
    if not torch.cuda.is_available():
        assert set(info["chosen"]) == {"cpu"}
        assert "no CUDA device here" in info["available"]["triton"] or "install triton" in info["available"]["triton"]
        assert info["available"]["cuda"] is not True


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment)


def test_importing_the_package_does_not_import_triton() -> None:
    result = python("import sys, finpercep.ops; print('triton' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr


def test_without_triton_and_cuda_library() -> None:
    """As where neither is installed: the import works, the operators run, info and errors say what to install."""
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        "sys.modules['finpercep._C_cuda'] = None\n"
        "import torch\nfrom finpercep import ops\n"
        "assert 'no CUDA device here' in ops.backends()['available']['cuda']\n"
        "torch.cuda.is_available = lambda: True\n"  # then what is missing is named
        "available = ops.backends()['available']\n"
        "assert '`pip install triton`' in available['triton'], available\n"
        "assert '_C_cuda did not load' in available['cuda'], available\n"
        "assert not hasattr(torch.ops.finpercep, 'modulate_triton')\n"
        "x, m = torch.ones(1, 4, 2), torch.full((1, 1, 4, 4), 0.5)\n"
        "assert (ops.modulate(x, m, (2, 2)) == 0.5).all()\n"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_a_triton_that_does_not_import_is_explained() -> None:
    code = (
        "import sys, types\nbroken = types.ModuleType('triton')\n"
        "import torch\nfrom finpercep import ops\nfrom finpercep.ops import _backend\n"
        "_backend._has_triton = True\nsys.modules['triton'] = broken\nsys.modules.pop('triton.language', None)\n"
        "torch.cuda.is_available = lambda: True\n"
        "print(ops.backends()['available']['triton'])\n"
    )
    result = python(code)
    assert result.stdout.startswith("Triton does not import ("), result.stdout + result.stderr
    assert "pip install -U triton" in result.stdout


@pytest.mark.parametrize("operator", FAMILIES)
def test_a_required_argument_that_is_none_is_named(operator: str) -> None:
    function = getattr(ops, operator)
    signature = inspect.signature(function)
    needed = [n for n, p in signature.parameters.items() if "Tensor" in p.annotation and "None" not in p.annotation]
    assert needed
    given: dict[str, Any] = {}

    def keep(*arguments: Any, **options: Any) -> Any:
        given.update(signature.bind(*arguments, **options).arguments)
        return function(**given)

    work = FAMILIES[operator].small[0].make(torch.float32)
    work.run(keep, *work.inputs, *work.fixed)
    for name in needed:
        with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected .*, got None$"):
            function(**given | {name: None})


def test_every_operator_is_in_the_table_of_the_tests() -> None:
    references = {name for name in ops.__all__ if name.endswith("_reference")}
    assert {f"{name}_reference" for name in FAMILIES} == references
