"""Which implementation of an operator runs: load the compiled extension, choose, and explain."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

# Fastest first. "reference" is plain PyTorch and always there.
BACKENDS = ("cuda", "triton", "cpp", "reference")
_GPU_BACKENDS = ("cuda", "triton")
_CPP_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _load() -> tuple[ModuleType | None, str | None]:
    """Import `finpercep._C`. A failure is kept as text: importing the package must not fail because of it."""
    try:
        return importlib.import_module("finpercep._C"), None
    except Exception as error:  # ImportError (not built), OSError / RuntimeError (built for something else)
        return None, f"{type(error).__name__}: {error}"


# Loaded with this module, not on the first call: a traced graph (torch.compile, export) then sees a constant.
_extension, _load_error = _load()


def has_cpp(operator: str) -> bool:
    """Whether the C++ operator `torch.ops.finpercep.<operator>` is registered.

    A library built from older sources may lack some: those run on the reference.
    """
    return _extension is not None and hasattr(torch.ops.finpercep, operator)


def register(
    operator: str,
    *,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Attach shapes and autograd to a C++ operator family; nothing to do where it is not built.

    `fake_backward` belongs to `<operator>_backward`; a family without gradient leaves the last three out.
    """
    if not has_cpp(operator):
        return
    torch.library.register_fake(f"finpercep::{operator}", fake)
    if fake_backward is not None and backward is not None:
        torch.library.register_fake(f"finpercep::{operator}_backward", fake_backward)
        torch.library.register_autograd(f"finpercep::{operator}", backward, setup_context=setup_context)


def unavailable_reason(backend: str, operator: str | None = None) -> str | None:
    """Why `backend` cannot run (this operator) here and what to do about it; None when it can."""
    if backend == "reference":
        return None
    if backend in _GPU_BACKENDS:
        return (
            f"this version of finpercep has no {backend} kernels yet; use backend=None, 'cpp' or 'reference'"
        )
    advice = "install a C++17 compiler and reinstall finpercep (`pip install --no-build-isolation -e .`)"
    if _extension is None:
        return f"the compiled extension finpercep._C did not load ({_load_error}); {advice}"
    if operator is not None and not has_cpp(operator):
        return f"the compiled extension finpercep._C is older than these sources: no operator {operator}; {advice}"
    return None


def resolve(backend: str | None, operator: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs `operator` for tensors of `device` and `dtype`.

    None picks the fastest that works and falls back down to "reference". A named backend that cannot run raises:
    ValueError (no such backend) or RuntimeError (not available, or not for this device or dtype), saying why.
    """
    if backend is None:
        return "cpp" if device.type == "cpu" and dtype in _CPP_DTYPES and has_cpp(operator) else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, got {backend!r}")
    reason = unavailable_reason(backend, operator)
    if reason is not None:
        raise RuntimeError(f"backend={backend!r} is not available: {reason}")
    if backend == "cpp":
        if device.type != "cpu":
            raise RuntimeError(f"backend='cpp' runs on CPU tensors, got {device}; use backend=None")
        if dtype not in _CPP_DTYPES:
            names = ", ".join(str(d).removeprefix("torch.") for d in _CPP_DTYPES)
            raise RuntimeError(f"backend='cpp' supports {names}, got {str(dtype).removeprefix('torch.')}")
    return backend


def backends() -> dict[str, Any]:
    """What was built, found and chosen, for `finpercep info`.

    Returns {"available": {name: True | reason}, "chosen": {"cpu": name}, "build": build_info() or None}.
    """
    available: dict[str, bool | str] = {}
    for name in BACKENDS:
        reason = unavailable_reason(name)
        available[name] = True if reason is None else reason
    return {
        "available": available,
        "chosen": {"cpu": "reference" if _extension is None else "cpp"},
        "build": None if _extension is None else dict(_extension.build_info()),
    }
