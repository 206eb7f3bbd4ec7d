"""The stages of the degradations that have a C++ kernel (csrc/cpu/degrade_*.cpp), and when it is used."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finpercep.ops import has_cpp


def compiled(operator: str, images: Tensor) -> Callable[..., Tensor] | None:
    """The kernel of a stage, or None where plain PyTorch runs instead.

    Kernels take float32 on the CPU, without gradient, and need the compiled extension. They take samples one by one, so
    that nothing of a sample leaves the cache; results differ from PyTorch's by rounding.
    """
    usable = images.device.type == "cpu" and images.dtype == torch.float32
    if not usable or (images.requires_grad and torch.is_grad_enabled()) or not has_cpp(operator):
        return None
    kernel: Callable[..., Tensor] = getattr(torch.ops.finpercep, operator)
    return kernel
