"""The block of mobile networks, in one pass over the pixels where no gradient is due: csrc/cpu/inverted_residual.cpp.

What lies between its three convolutions has six times the channels of what it is given. The kernel keeps a few rows of
that in the cache, where PyTorch's convolutions write and read all of it. It is no public operator: where weights are
trained, in a graph that is exported, and on GPUs PyTorch's convolutions run, which are the definition.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from finpercep.models.cpu_kernels import is_differentiated, one_operator, takes
from finpercep.ops import has_cpp


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does for sides that are multiples of the stride: more at bottom and right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        total = max(0, kernel - stride)
        self.before, self.after = total // 2, total - total // 2
        symmetric = self.before == self.after
        super().__init__(inputs, outputs, kernel, stride, self.before if symmetric else 0, groups=groups)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.before != self.after:
            x = F.pad(x, [self.before, self.after, self.before, self.after])
        return F.conv2d(x, weight, bias, self.stride, self.padding, groups=self.groups)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where the shape stays.

    Shape: (B,inputs,H,W) -> (B,outputs,H // stride,W // stride).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = nn.Conv2d(inputs, wide, 1) if expansion > 1 else None
        self.filter = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = nn.Conv2d(wide, outputs, 1)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        if self._is_for_kernel(x):
            expand, filters, project = self.expand, self.filter, self.project
            out: Tensor = _whole(
                x,
                None if expand is None else expand.weight,
                None if expand is None else expand.bias,
                filters.weight,
                filters.bias,
                project.weight,
                project.bias,
                filters.stride[0],
                self.skip,
            )
            return out
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.filter(y), inplace=True))
        return y + x if self.skip else y

    def _is_for_kernel(self, x: Tensor) -> bool:
        layers = [layer for layer in (self.expand, self.filter, self.project) if layer is not None]
        if not takes("inverted_residual", x, *layers) or is_differentiated(x, *layers):
            return False
        return x.dim() == 4 and min(x.shape[-2:]) >= self.filter.stride[0]


def _like_whole(x: Tensor, *weights: Any) -> Tensor:
    project, stride = weights[4], weights[6]
    batch, _, height, width = x.shape
    return x.new_empty(batch, height // stride, width // stride, len(project)).permute(0, 3, 1, 2)


@one_operator("inverted_residual_layer", _like_whole)
def _whole(
    x: Tensor,
    expand: Tensor | None,
    expand_bias: Tensor | None,
    filters: Tensor,
    filters_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    stride: int,
    skip: bool,
) -> Tensor:
    """The block's result."""
    weights = (expand, expand_bias, filters, filters_bias, project, project_bias)
    rows: Tensor = torch.ops.finpercep.inverted_residual(x.permute(0, 2, 3, 1), *weights, stride, skip)
    return rows.permute(0, 3, 1, 2)


def _flops(x: Any, expand: Any, _: Any, filters: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    """Those of the definition."""
    project, (batch, height, width, outputs) = rest[1], out_shape
    wide, taps = filters[0], filters[2] * filters[3]
    total = conv_flop_count([batch, wide, height, width], list(project), [batch, outputs, height, width])
    total += 2 * batch * height * width * wide * taps
    if expand is not None:
        sides = [x[1], x[2]]
        total += conv_flop_count([batch, x[3], *sides], list(expand), [batch, wide, *sides])
    return total


if has_cpp("inverted_residual"):
    register_flop_formula(torch.ops.finpercep.inverted_residual)(_flops)
