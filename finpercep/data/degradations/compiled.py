"""The stages of the degradations that have a C++ kernel (csrc/cpu/degrade_*.cpp), and when it is used."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

from finpercep.ops import has_cpp


class Integer(IntEnum):
    """Columns of the table `integers` of the operator `degrade_samples`, as in csrc/include/degrade_columns.h."""

    HEIGHT = 0
    WIDTH = 1
    HEIGHT1 = 2
    WIDTH1 = 3
    HEIGHT2 = 4
    WIDTH2 = 5
    FINAL_HEIGHT = 6
    FINAL_WIDTH = 7
    MODE1 = 8
    MODE2 = 9
    FINAL_MODE = 10
    BILINEAR = 11


class Flag(IntEnum):
    """Columns of the table `flags` of the operator `degrade_samples`."""

    GAUSSIAN1 = 0
    GRAY1 = 1
    GAUSSIAN2 = 2
    GRAY2 = 3
    BLURRED = 4
    SINC_FIRST = 5


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
