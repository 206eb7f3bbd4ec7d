"""Devices by name, and how they compute."""

from __future__ import annotations

import torch
from torch import Tensor

from finpercep.io.reasons import one_line

__all__ = ["check_device", "take_full_float32", "uploaded"]


def check_device(device: str | torch.device) -> None:
    """Refuse a device on which nothing could run.

    Raises:
        ValueError: torch knows no such device, or cannot use it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it has CUDA
        raise ValueError(f"device: expected a device of this machine, got {device}: {one_line(error)}") from None


def take_full_float32(device: str | torch.device) -> None:
    """Of CUDA: float32 convolutions of this process keep float32, as matrix products do; torch's default is TF32.

    For the whole process, not around a call: a backward pass runs when the call is over. Whoever wants TF32 sets the
    flag anew afterwards.
    """
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


def uploaded(values: Tensor, device: str | torch.device) -> Tensor:
    """Values on a device; the host does not wait for a GPU to take them from the CPU."""
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
