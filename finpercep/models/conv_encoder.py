"""A small hierarchical encoder that sees every pixel: filter energies and residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from finpercep.models.constants import KeepsConstants
from finpercep.models.conv3x3 import conv3x3_relu
from finpercep.models.cpu_kernels import alone, is_differentiated, takes
from finpercep.models.filters import ENERGY_CENTER, ENERGY_FLOOR, KERNELS, derivative_kernels
from finpercep.models.norms import convolution, scale_output
from finpercep.models.precision import at_least_float32, without_autocast
from finpercep.models.tiles import repeat_edges
from finpercep.ops import has_cpp


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))). The second convolution starts small: depth does not hinder early training."""

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels, 3, norm=norm)
        self.conv2 = convolution(channels, channels, 3, norm=norm)
        scale_output(self.conv2, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return conv3x3_relu(self.conv2, conv3x3_relu(self.conv1, x), residual=x)


class EnergyStem(KeepsConstants):
    """Log energies of derivatives at three scales, and the mean color, at stride 4.

    Restored pixels differ from a camera's in how the energy of fine detail relates to that of coarse detail. A plain
    convolutional stem has to learn that ratio before it can find a fault; here the logarithm makes it a difference
    from the first step. The filters stay fixed: trained, they lose their shape before anything behind them has learned.
    Energies are float32 whatever the model's type, and under autocast: in half precision, faint ones would be noise.

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
        if conv is not None and takes("energy_stem", images, conv) and not is_differentiated(images, conv):
            weight = conv.weight.flatten(1)
            out: Tensor = torch.ops.finpercep.energy_stem(images, weight, conv.bias, ENERGY_FLOOR, ENERGY_CENTER)
            return out.permute(0, 3, 1, 2)
        with without_autocast(images.device):
            pixels = images.to(at_least_float32(images.dtype)).contiguous(memory_format=torch.channels_last)
            energies = self._energies(pixels)
        return F.relu_(self.mix(energies.to(next(self.mix.parameters()).dtype)))

    def _energies(self, level: Tensor) -> Tensor:
        features = []
        for scale in range(self.SCALES):
            if scale:
                level = F.avg_pool2d(level, 2)
            padded = repeat_edges(level, top=1, bottom=1, left=1, right=1)
            # At full resolution every second position is enough for an average, and a quarter of the memory traffic.
            energy = F.conv2d(padded, self.kernels, stride=1 if scale else 2).abs_()
            if scale < 2:
                energy = F.avg_pool2d(energy, 2)
            features.append(energy)
        energies = torch.cat(features, dim=1).add_(ENERGY_FLOOR).log_().sub_(ENERGY_CENTER)
        return torch.cat([energies, level * 4 - 2], dim=1)


class ConvEncoder(nn.Module):
    """Feature maps at strides 4, 8, 16, … from full-resolution pixels.

    Args:
        channels: width of each stage; stage i has stride 4·2^i.
        depths: residual blocks in each stage.
        norm: whether convolutions are normalized, for training; see `norms`.

    Shape: images (B,3,H,W) in [0, 1], sides multiples of `stride` -> list of (B,C_i,H/s_i,W/s_i), fine to coarse.
    """

    def __init__(
        self,
        channels: Sequence[int] = (48, 64, 96),
        depths: Sequence[int] = (1, 1, 1),
        *,
        norm: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != len(depths) or not channels:
            raise ValueError(f"depths: expected one for each of the channels {tuple(channels)}, got {tuple(depths)}")
        self.channels = list(channels)
        self.upsampling = [1] * len(channels)  # already a pyramid
        self.stride = 4 * 2 ** (len(channels) - 1)
        self.stem = EnergyStem(channels[0], norm=norm)
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            blocks: list[nn.Module] = [ResidualBlock(width, norm=norm) for _ in range(depth)]
            if i:
                down = convolution(channels[i - 1], width, 3, stride=2, norm=norm)
                blocks = [down, nn.ReLU(inplace=True), *blocks]
            self.stages.append(nn.Sequential(*blocks))
        self.radius = _receptive_radius(depths)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _kernels() -> Tensor:
    return derivative_kernels().contiguous(memory_format=torch.channels_last)


def _receptive_radius(depths: Sequence[int]) -> int:
    """How many pixels away an input pixel can still move a feature."""
    radius = 4 + 4  # the stem: a 3x3 filter at stride 4
    for i, depth in enumerate(depths):
        stride = 4 * 2**i
        radius += 2 * depth * stride + (stride // 2 if i else 0)
    return radius


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
