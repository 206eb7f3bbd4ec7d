"""Devices by name."""

from __future__ import annotations

import torch

from finpercep.io.reasons import one_line

__all__ = ["check_device"]


def check_device(device: str | torch.device) -> None:
    """Refuse a device on which nothing could run.

    Raises:
        ValueError: torch knows no such device, or cannot use it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it has CUDA
        raise ValueError(f"device: expected a device of this machine, got {device}: {one_line(error)}") from None
