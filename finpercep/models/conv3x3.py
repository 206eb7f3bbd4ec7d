"""3x3 convolutions with what follows them, in one pass over the pixels: csrc/cpu/conv3x3.cpp.

The kernel is Winograd's: 36 multiplications take the place of 144, so that a model scores, and gives its gradient to
pixels, faster than by direct convolutions on a CPU. It is no public operator: on a GPU cuDNN does the same, and whoever
exports has PyTorch's convolution, which is the definition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from finpercep.models.cpu_kernels import PANEL, alone, is_differentiated, one_operator, takes
from finpercep.ops import has_cpp


def conv3x3_relu(layer: nn.Sequential, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """relu(layer(x) + residual).

    Args:
        layer: a `convolution` of 3x3 and stride 1, with its normalization or without.
        x: (B,C,H,W).
        residual: (B,K,H,W), or None.
    """
    conv = alone(layer)
    if conv is not None and takes("conv3x3", x, conv):
        differentiated = is_differentiated(x, conv) or (residual is not None and is_differentiated(residual))
        run = _Convolution.apply if differentiated else _forward
        out: Tensor = run(x, residual, conv.weight, conv.bias)
        return out
    y = layer(x)
    return F.relu_(y if residual is None else y.add_(residual))  # in place: fresh memory costs more than arithmetic


class _Convolution(torch.autograd.Function):
    """relu(conv(x) + residual)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = _forward(x, residual, weight, bias)
        trained = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        ctx.save_for_backward(x if trained else None, weight, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        of_images, of_residual, *trained = ctx.needs_input_grad
        images, of_parameters = None, (None, None)
        if of_images and (torch.compiler.is_compiling() or not torch.is_grad_enabled()):
            grad, images = _backward(grad, out, weight)
        else:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
            if of_images:  # somebody differentiates again
                images = F.conv2d(grad, _turned(weight), padding=1)
        if any(trained):
            one = [1, 1]
            given = torch.ops.aten.convolution_backward(
                grad, x, weight, [len(weight)], one, one, one, False, [0, 0], 1, (False, *trained)
            )
            of_parameters = given[1:]
        return images, grad if of_residual else None, *of_parameters


def _like_rows(x: Tensor, channels: int) -> Tensor:
    batch, _, *sides = x.shape
    return _channels_first(x.new_empty(batch, *sides, channels))


@one_operator("conv3x3_layer", lambda x, residual, weight, bias: _like_rows(x, len(weight)))
def _forward(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(conv(x) + residual)."""
    added = None if residual is None else _channels_last(residual)
    panels = _prepared(weight, "forward")
    return _channels_first(torch.ops.finpercep.conv3x3(_channels_last(x), panels, bias, added, True))


@one_operator(
    "conv3x3_layer_backward",
    lambda grad, out, weight: (_like_rows(grad, len(weight)), _like_rows(grad, weight.shape[1])),
)
def _backward(grad: Tensor, out: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of conv(x) + residual, and of x."""
    rows = torch.ops.aten.threshold_backward(_channels_last(grad).contiguous(), _channels_last(out), 0)
    panels, zeros = _prepared(weight, "backward"), grad.new_zeros(weight.shape[1])
    return _channels_first(rows), _channels_first(torch.ops.finpercep.conv3x3(rows, panels, zeros, None, False))


def _turned(weight: Tensor) -> Tensor:
    """The gradient of a correlation to its images is one of the results' gradient with the kernel turned round."""
    return weight.flip(2, 3).transpose(0, 1)


class _Prepared(NamedTuple):
    weight: Tensor
    """as it was"""
    storage: StorageWeakRef
    """of the weight itself"""
    panels: Tensor
    """what the kernel multiplies by"""


_kept: dict[tuple[int, str], _Prepared] = {}
"""By address and direction: a compiled graph passes other tensors of the same memory."""


def _prepared(weight: Tensor, direction: str) -> Tensor:
    """The weights as the kernel takes them. They are compared by value: not every change of a tensor is counted."""
    key = weight.data_ptr(), direction
    kept = _kept.get(key)
    if kept is None or not torch.equal(kept.weight, weight):
        for other in [other for other, old in list(_kept.items()) if old.storage.expired()]:
            _kept.pop(other, None)
        copy = weight.detach().clone()
        panels = torch.ops.finpercep.conv3x3_weight(copy if direction == "forward" else _turned(copy))
        kept = _kept[key] = _Prepared(copy, StorageWeakRef(weight.untyped_storage()), panels)
    return kept.panels


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _flops(images: Any, weight: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    """Those of the definition."""
    batch, height, width, channels = images
    outputs = weight[0] * PANEL
    return conv_flop_count([batch, channels, height, width], [outputs, channels, 3, 3], [batch, outputs, height, width])


if has_cpp("conv3x3"):
    register_flop_formula(torch.ops.finpercep.conv3x3)(_flops)
