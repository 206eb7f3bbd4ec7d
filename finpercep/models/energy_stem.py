"""The first layer of the small encoder: energies of derivatives. On a CPU one kernel, csrc/cpu/energy_stem.cpp."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from finpercep.models.constants import KeepsConstants
from finpercep.models.cpu_kernels import alone, is_differentiated, is_trained, one_operator, takes
from finpercep.models.filters import ENERGY_CENTER, ENERGY_FLOOR, ENERGY_ZERO, KERNELS, derivative_kernels
from finpercep.models.norms import convolution
from finpercep.models.tiles import repeat_edges
from finpercep.ops import has_cpp


class EnergyStem(KeepsConstants):
    """Log energies of derivatives at three scales, and the mean color, at stride 4.

    Restored pixels differ from a camera's in how the energy of fine detail relates to that of coarse detail. A plain
    convolutional stem has to learn that ratio before it can find a fault; here the logarithm makes it a difference
    from the first step. The filters stay fixed: trained, they lose their shape before anything behind them has learned.
    It runs in float32 like the encoder around it: in half precision, faint energies would be noise.

    Shape: (B,3,H,W) in [0, 1], sides multiples of 4 -> (B,channels,H/4,W/4).
    """

    kernels: Tensor

    SCALES = 3

    def __init__(self, channels: int, *, norm: bool = False) -> None:
        super().__init__()
        self.keep_constant("kernels", _kernels)
        self.mix = convolution(self.SCALES * KERNELS + 3, channels, 1, norm=norm)

    def forward(self, images: Tensor) -> Tensor:
        conv = alone(self.mix)
        if conv is not None and takes("energy_stem", images, conv) and not is_trained(conv):
            if is_differentiated(images, conv):
                out: Tensor = _Stem.apply(images, conv.weight, conv.bias, self)
            else:
                out = _forward(images, conv.weight, conv.bias)
            return out
        return self.defined(images)

    def defined(self, images: Tensor) -> Tensor:
        """The result by PyTorch's operators, the definition."""
        return F.relu_(self.mix(self._energies(images.contiguous(memory_format=torch.channels_last))))

    def _energies(self, level: Tensor) -> Tensor:
        features = []
        for scale in range(self.SCALES):
            if scale:
                level = F.avg_pool2d(level, 2)
            padded = repeat_edges(level, top=1, bottom=1, left=1, right=1)
            # At full resolution every second position is enough for an average, and a quarter of the memory traffic.
            derivatives = F.conv2d(padded, self.kernels, stride=1 if scale else 2)
            energy = torch.hardshrink(derivatives, ENERGY_ZERO).abs_()
            if scale < 2:
                energy = F.avg_pool2d(energy, 2)
            features.append(energy)
        energies = torch.cat(features, dim=1).add_(ENERGY_FLOOR).log_().sub_(ENERGY_CENTER)
        return torch.cat([energies, level * 4 - 2], dim=1)


def _kernels() -> Tensor:
    return derivative_kernels().contiguous(memory_format=torch.channels_last)


class _Stem(torch.autograd.Function):
    """The stem with frozen weights."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, stem: EnergyStem) -> Tensor:
        out: Tensor = _forward(images, weight, bias)
        ctx.stem = stem
        ctx.save_for_backward(images, weight, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, out = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # somebody differentiates again
            return torch.autograd.grad(ctx.stem.defined(images), images, grad, create_graph=True)[0], None, None, None
        return _backward(grad, out, images, weight), None, None, None


def _like_forward(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, _, height, width = images.shape
    return images.new_empty(batch, height // 4, width // 4, len(bias)).permute(0, 3, 1, 2)


@one_operator("energy_stem_layer", _like_forward)
def _forward(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The stem's result."""
    rows: Tensor = torch.ops.finpercep.energy_stem(images, weight.flatten(1), bias, ENERGY_FLOOR, ENERGY_CENTER)
    return rows.permute(0, 3, 1, 2)


@one_operator("energy_stem_layer_backward", lambda grad, out, images, weight: images.new_empty(images.shape))
def _backward(grad: Tensor, out: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    """The gradient to the images."""
    rows = torch.ops.aten.threshold_backward(grad, out, 0).permute(0, 2, 3, 1)
    of_images: Tensor = torch.ops.finpercep.energy_stem_backward(rows @ weight.flatten(1), images, ENERGY_FLOOR)
    return of_images


def _stem_flops(images: Any, weight: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    """Those of the definition's convolutions."""
    batch, _, height, width = images
    total = conv_flop_count([batch, weight[1], 1, 1], [*weight, 1, 1], [batch, weight[0], height // 4, width // 4])
    for cells in (2, 2, 4):
        of_scale = [batch, KERNELS, height // cells, width // cells]
        total += conv_flop_count([batch, 3, 1, 1], [KERNELS, 3, 3, 3], of_scale)
    return total


if has_cpp("energy_stem"):
    register_flop_formula(torch.ops.finpercep.energy_stem)(_stem_flops)
