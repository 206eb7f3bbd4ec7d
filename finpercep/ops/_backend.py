"""Which implementation of an operator runs: load the compiled extension, choose, and explain."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

# Fastest first. "reference" is plain PyTorch and always there.
BACKENDS = ("cuda", "triton", "cpp", "reference")
_GPU_BACKENDS = ("cuda", "triton")
_CPP_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _load() -> tuple[ModuleType | None, str | None]:
    """Import `finpercep._C`. Any failure is kept as text: importing the package must never fail because of it."""
    try:
        from finpercep import _C  # type: ignore[attr-defined]
    except Exception as error:  # ImportError (not built), OSError / RuntimeError (built for something else)
        return None, f"{type(error).__name__}: {error}"
    return _C, None


# Loaded with this module rather than on the first call, so that a traced graph (torch.compile, export) sees a constant.
_extension, _load_error = _load()


def cpp_available() -> bool:
    """Whether the C++ operators (`torch.ops.finpercep.*`) are registered."""
    return _extension is not None


def unavailable_reason(backend: str) -> str | None:
    """Why `backend` cannot run here and what to do about it; None when it can."""
    if backend == "reference":
        return None
    if backend == "cpp":
        if _extension is not None:
            return None
        return (
            f"the compiled extension finpercep._C did not load ({_load_error}); install a C++17 compiler and "
            "reinstall with `pip install --no-build-isolation -e .`"
        )
    if backend in _GPU_BACKENDS:
        return (
            f"this version of finpercep has no {backend} kernels yet; use backend=None, 'cpp' or 'reference'"
        )
    return f"unknown backend; expected one of {', '.join(BACKENDS)} or None"


def resolve(backend: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The backend to run for tensors of `device` and `dtype`.

    None picks the fastest that works and falls back down to "reference". A named backend that cannot run raises
    ValueError (no such backend) or RuntimeError (not available, or not for this device or dtype), saying why.
    """
    if backend is None:
        usable = _extension is not None and device.type == "cpu" and dtype in _CPP_DTYPES
        return "cpp" if usable else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, got {backend!r}")
    reason = unavailable_reason(backend)
    if reason is not None:
        raise RuntimeError(f"backend={backend!r} is not available: {reason}")
    if backend == "cpp":
        if device.type != "cpu":
            raise RuntimeError(
                f"backend='cpp' runs on CPU tensors, got tensors on {device}; use backend=None"
            )
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
        "chosen": {"cpu": resolve(None, torch.device("cpu"), torch.float32)},
        "build": None if _extension is None else dict(_extension.build_info()),
    }
