"""3x3 convolutions with what follows them, in one pass over the pixels: csrc/cpu/conv3x3.cpp.

The kernel is Winograd's: 36 multiplications take the place of 144, so that a model scores, and gives its gradient to
pixels, faster than by direct convolutions on a CPU. It is no public operator: on a GPU cuDNN does the same, and whoever
compiles or exports has PyTorch's convolution, which is the definition.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from finpercep.models.cpu_kernels import PANEL, alone, takes
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
        out: Tensor = _Convolution.apply(x, residual, conv.weight, conv.bias, conv)
        return out
    y = layer(x)
    return F.relu_(y if residual is None else y.add_(residual))  # in place: fresh memory costs more than arithmetic


class _Convolution(torch.autograd.Function):
    """relu(conv(x) + residual)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, conv: nn.Conv2d) -> Tensor:
        added = None if residual is None else _channels_last(residual)
        prepared = _prepared(conv, "forward")
        out = _channels_first(torch.ops.finpercep.conv3x3(_channels_last(x), prepared, bias, added, True))
        ctx.conv = conv
        trained = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        ctx.save_for_backward(x if trained else None, weight, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        of_images, of_residual, *trained, _ = ctx.needs_input_grad
        grad, images, of_parameters = torch.ops.aten.threshold_backward(grad, out, 0), None, (None, None)
        if of_images and torch.is_grad_enabled():  # somebody differentiates again
            images = F.conv2d(grad, _turned(weight), padding=1)
        elif of_images:
            zeros, prepared = grad.new_zeros(weight.shape[1]), _prepared(ctx.conv, "backward")
            images = _channels_first(torch.ops.finpercep.conv3x3(_channels_last(grad), prepared, zeros, None, False))
        if any(trained):
            one = [1, 1]
            given = torch.ops.aten.convolution_backward(
                grad, x, weight, [len(weight)], one, one, one, False, [0, 0], 1, (False, *trained)
            )
            of_parameters = given[1:]
        return images, grad if of_residual else None, *of_parameters, None


def _turned(weight: Tensor) -> Tensor:
    """The gradient of a correlation to its images is one of the results' gradient with the kernel turned round."""
    return weight.flip(2, 3).transpose(0, 1)


_kept: WeakKeyDictionary[nn.Conv2d, dict[str, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
"""Of each convolution and direction: its weights as they were, and what the kernel multiplies by."""


def _prepared(conv: nn.Conv2d, direction: str) -> Tensor:
    """The weights as the kernel takes them. They are compared by value: not every change of a tensor is counted."""
    of_conv = _kept.setdefault(conv, {})
    if direction not in of_conv or not torch.equal(of_conv[direction][0], conv.weight):
        weight = conv.weight.detach().clone()
        given = weight if direction == "forward" else _turned(weight)
        of_conv[direction] = weight, torch.ops.finpercep.conv3x3_weight(given)
    return of_conv[direction][1]


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
