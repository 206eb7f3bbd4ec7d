"""Buffers that are constants, not weights: filters and normalization, which no file holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from finpercep.models.precision import at_least_float32


class KeepsConstants(nn.Module):
    """A module whose constants are back after anything that could lose them.

    They are buffers that no state holds, so that they follow `to`. Built on the meta device, `to_empty` and
    `load_state_dict(assign=True)` would leave them without values, and what uses them would compute from
    uninitialized memory; here they are made again, on the device and in the type of the module's parameters, but never
    in half precision: what uses them computes in float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants: dict[str, Callable[[], Tensor]] = {}
        self.register_load_state_dict_post_hook(_restore_after_loading)

    def keep_constant(self, name: str, make: Callable[[], Tensor]) -> None:
        """Register the buffer `name` (dotted: of a submodule), or take over a present one.

        Args:
            make: gives its value; called under the CPU as default device, whenever the value is needed. Whatever
                torch's default type, the value has to be the same: name the type, float32.
        """
        owner, attribute = self._place(name)
        self._constants[name] = make
        if attribute not in owner._buffers:
            device = torch.empty(0).device  # the default one
            value = make() if device.type == "meta" else _value(make, device)  # there, only the shape
            owner.register_buffer(attribute, _typed(value, torch.get_default_dtype()), persistent=False)

    def restore_constants(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make all constants again, on `device`; the floating-point ones in `dtype`, or float32 for half precision."""
        for name, make in self._constants.items():
            owner, attribute = self._place(name)
            if device.type != "meta":
                owner._buffers[attribute] = _typed(_value(make, device), dtype)

    def _place(self, name: str) -> tuple[nn.Module, str]:
        path, _, attribute = name.rpartition(".")
        return self.get_submodule(path), attribute

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        _restore_after_loading(self)
        return result


def _restore_after_loading(module: nn.Module, _: Any = None) -> None:
    assert isinstance(module, KeepsConstants)
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is not None:
        module.restore_constants(like.device, like.dtype)


@torch.no_grad()
def _value(make: Callable[[], Tensor], device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return make().to(device)


def _typed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The constant of a model whose parameters have this type."""
    return value.to(at_least_float32(dtype)) if value.is_floating_point() else value
