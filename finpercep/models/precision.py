"""What is computed in float32 whatever the model's type: pixels, their first features, and scores."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type of reductions and scores: float32 for half precision, else `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """What runs inside keeps the types it is given; nothing on devices without autocast (meta)."""
    if device.type == "meta":  # torch 2.11 cannot compile the question which devices have it
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
