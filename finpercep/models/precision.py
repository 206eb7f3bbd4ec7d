"""What is computed in float32 whatever the model's type: pixels, convolutional models, and scores."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type of reductions and scores: float32 for half precision, else `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """What runs inside keeps the types it is given; nothing on devices without autocast (meta)."""
    if device.type == "meta":  # torch 2.11 cannot compile the question which devices have it
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class KeepsFloat32(nn.Module):
    """A module whose weights stay float32 where the model that it is part of is moved to half precision.

    What is loaded into it in half precision becomes float32 too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_load_state_dict_post_hook(_widen)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(lambda tensor: _kept(tensor, fn(tensor)), recurse)


def is_of(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether `module.to(dtype)` would leave all of its parameters as they are."""
    kept = {p for part in module.modules() if isinstance(part, KeepsFloat32) for p in part.parameters()}
    wide = at_least_float32(dtype)
    return all(p.dtype == (wide if p in kept else dtype) for p in module.parameters() if p.is_floating_point())


def _widen(module: nn.Module, _: Any) -> None:
    module._apply(lambda tensor: tensor)


def _kept(before: Tensor, after: Tensor) -> Tensor:
    if after.dtype not in (torch.bfloat16, torch.float16):
        return after
    return torch.empty_like(after, dtype=torch.float32).copy_(before)  # not of `after`, which is rounded
