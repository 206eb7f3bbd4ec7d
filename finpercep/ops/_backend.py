"""Which implementation of an operator runs: load the compiled extensions, find Triton, choose, and explain."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch.autograd import forward_ad

# Fastest first. "reference" is plain PyTorch and always there.
BACKENDS = ("cuda", "triton", "cpp", "reference")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_REINSTALL = "reinstall finpercep (`pip install .` in its sources)"


def _load(name: str) -> tuple[ModuleType | None, str]:
    """Import a compiled extension. A failure is kept as text: importing the package must not fail because of it."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # ImportError (not built), OSError / RuntimeError (built for something else)
        return None, f"{type(error).__name__}: {error}"


# Loaded with this module, not on the first call: a traced graph (torch.compile, export) then sees constants.
_extension, _load_error = _load("finpercep._C")
_cuda_extension, _cuda_load_error = _load("finpercep._C_cuda")
# Capability (80 for 8.0) of the oldest GPU that the CUDA kernels have code for; newer ones compile its PTX.
_oldest_gpu = 0 if _cuda_extension is None else min(map(int, _cuda_extension.build_info()["archs"]))
# Triton is only looked for: importing it takes a while, and only its kernels need it.
_has_triton = importlib.util.find_spec("triton") is not None
# Triton compiles with it what launches a kernel.
_has_compiler = bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
# Under Triton's interpreter, which reads the same variable, its kernels run on CPU tensors: slow, for tests.
_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
# Operators with a CUDA kernel; `_registration.register` finds them.
_cuda_operators: set[str] = set()


def has_cpp(operator: str) -> bool:
    """Whether the C++ operator `torch.ops.finpercep.<operator>` is registered.

    A library built from older sources may lack some: those run on the reference.
    """
    return _extension is not None and hasattr(torch.ops.finpercep, operator)


def has_cuda(operator: str) -> bool:
    """Whether `torch.ops.finpercep.<operator>` has a CUDA kernel."""
    return operator in _cuda_operators


def operator(backend: str, name: str) -> Any:
    """The operator that a backend other than "reference", as `resolve` chose it, calls."""
    return getattr(torch.ops.finpercep, f"{name}_triton" if backend == "triton" else name)


def unavailable_reason(backend: str, operator: str | None = None) -> str | None:
    """Why `backend` cannot run (this operator) here and what to do about it; None when it can.

    That there are CUDA tensors is for `resolve` to see.
    """
    if backend == "reference":
        return None
    if backend == "triton":
        if not _has_triton:
            return "Triton is not installed; `pip install triton` (Linux, with an NVIDIA GPU)"
        if not (_has_compiler or _interpreted):
            return "Triton needs a C compiler to launch its kernels; install gcc, or set CC"
        return None
    advice = f"install a C++17 compiler and {_REINSTALL}"
    if _extension is None:  # it also holds the schemas of the CUDA kernels
        return f"the compiled extension finpercep._C did not load ({_load_error}); {advice}"
    if backend == "cuda":
        return _no_cuda_reason(operator)
    if operator is not None and not has_cpp(operator):
        return f"the compiled extension finpercep._C is older than these sources: no operator {operator}; {advice}"
    return None


def _no_cuda_reason(operator: str | None) -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a torch with CUDA, then {_REINSTALL}"
    advice = f"install the CUDA toolkit (nvcc) and {_REINSTALL} with FINPERCEP_CUDA_ARCHS=all, or on a GPU use 'triton'"
    if _cuda_extension is None:
        return f"the compiled extension finpercep._C_cuda did not load ({_cuda_load_error}); {advice}"
    if operator is not None and not has_cuda(operator):
        return f"the compiled extension finpercep._C_cuda has no kernel for {operator}; {advice}"
    return None


@cache
def _capability(index: int | None) -> int:
    """Compute capability of a GPU: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def _too_old(device: torch.device) -> str | None:
    """Why the CUDA kernels cannot run on this GPU, None if they can. A traced graph does not ask."""
    if not _oldest_gpu or torch.compiler.is_compiling() or _capability(device.index) >= _oldest_gpu:
        return None
    return (
        f"the CUDA kernels are compiled for GPUs from sm_{_oldest_gpu}, {device} is sm_{_capability(device.index)}; "
        f"{_REINSTALL} with FINPERCEP_CUDA_ARCHS=native, or use 'triton'"
    )


def transformed() -> str | None:
    """What only the reference takes: forward-mode derivatives, or a transform of torch.func (grad, vmap); else None."""
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives"
    if not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None:
        return "transforms of torch.func"
    return None


def _fastest(operator: str, device: torch.device, dtype: torch.dtype) -> str:
    if dtype in _DTYPES:
        if device.type == "cuda":
            if has_cuda(operator) and _too_old(device) is None:
                return "cuda"
            return "triton" if unavailable_reason("triton") is None else "reference"
        if device.type == "cpu" and has_cpp(operator):
            return "cpp"
    return "reference"


def require_tensors(*optional: str, **arguments: Any) -> None:
    """Raise a TypeError that names the first argument that is no tensor; those named in `optional` may be None."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor) and not (value is None and name in optional):
            shown = "None" if value is None else type(value).__name__
            raise TypeError(f"{name}: expected a torch tensor, got {shown}")


def savable(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """The tensors as autograd can save them: those made under torch.inference_mode are copied where a gradient is due.

    A rollout under inference mode leaves such tensors, and the update outside of it differentiates with them.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return tensors
    if not any(t is not None and t.requires_grad for t in tensors):
        return tensors
    return tuple(t.clone() if t is not None and t.is_inference() else t for t in tensors)


def resolve(backend: str | None, operator: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs `operator` for tensors of `device` and `dtype`.

    None picks the fastest that works and falls back down to "reference". Under the transforms of torch.func it picks
    "reference": compiled kernels would give jvp a derivative of 0.

    Raises:
        ValueError: no such backend.
        RuntimeError: a named backend that is not available, or not for this device or dtype; says why.
    """
    if backend is None:
        return "reference" if transformed() else _fastest(operator, device, dtype)
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, got {backend!r}")
    reason = unavailable_reason(backend, operator)
    if reason is not None:
        raise RuntimeError(f"backend={backend!r} is not available: {reason}")
    if backend == "reference":
        return backend
    if transform := transformed():
        raise RuntimeError(f"{operator}: no {transform}; use backend='reference' for them")
    needed = "cpu" if backend == "cpp" else "cuda"
    if device.type != needed and not (backend == "triton" and _interpreted and device.type == "cpu"):
        raise RuntimeError(f"backend={backend!r} runs on {needed.upper()} tensors, got {device}; use backend=None")
    if backend == "cuda" and (reason := _too_old(device)) is not None:
        raise RuntimeError(f"backend={backend!r} is not available: {reason}")
    if dtype not in _DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
        raise RuntimeError(f"backend={backend!r} supports {names}, got {str(dtype).removeprefix('torch.')}")
    return backend


def _availability(backend: str) -> bool | str:
    """What `finpercep info` says: unlike `unavailable_reason` it may import Triton and look for a GPU."""
    on_cpu = backend == "triton" and _interpreted
    if backend in ("cuda", "triton") and not on_cpu and not torch.cuda.is_available():
        return "no CUDA device here (needs an NVIDIA GPU, its driver, and a torch built with CUDA)"
    reason = unavailable_reason(backend)
    if reason is None and backend == "cuda":
        reason = _too_old(torch.device("cuda", torch.cuda.current_device()))
    if reason is not None:
        return reason
    if backend == "triton":
        try:
            importlib.import_module("finpercep.kernels.modulate")
        except Exception as error:
            return f"Triton does not import ({type(error).__name__}: {error}); `pip install -U triton`"
    return True


def backends() -> dict[str, Any]:
    """What was built, found and chosen, for `finpercep info`.

    Returns {"available": {name: True | reason}, "chosen": {device: name}, "build": build_info() or None,
    "build_cuda": build_info() of the CUDA extension or None, "load_error", "load_error_cuda": why the extension did not
    load, or ""}.
    """
    available = {name: _availability(name) for name in BACKENDS}
    chosen = {"cpu": "reference" if _extension is None else "cpp"}
    if torch.cuda.is_available():
        chosen["cuda"] = next(name for name in ("cuda", "triton", "reference") if available[name] is True)
    return {
        "available": available,
        "chosen": chosen,
        "build": None if _extension is None else dict(_extension.build_info()),
        "build_cuda": None if _cuda_extension is None else dict(_cuda_extension.build_info()),
        "load_error": _load_error,
        "load_error_cuda": _cuda_load_error,
    }
