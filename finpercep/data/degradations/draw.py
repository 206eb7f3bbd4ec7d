"""What is drawn for each sample: a function of its seed and the options alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finpercep.data.degradations.blur_kernels import KINDS, KernelParameters
from finpercep.data.degradations.config import DegradationConfig
from finpercep.data.degradations.random_bits import keys, uniforms

SINC_SIDE = 21  # of the final sinc kernel
DRAWS = 64  # random numbers per sample, more than are used


class Order(NamedTuple):
    """Drawn parameters of one order, each (B,) on the CPU, and its noise keys (B,2)."""

    kernel: KernelParameters
    height: Tensor
    width: Tensor
    mode: Tensor
    gaussian: Tensor
    strength: Tensor
    grey: Tensor
    quality: Tensor
    key: Tensor


class Parameters(NamedTuple):
    """Everything drawn for a batch."""

    first: Order
    second: Order
    sinc: KernelParameters
    sinc_before_jpeg: Tensor
    mode: Tensor

    def take(self, index: Tensor) -> Parameters:
        """Those of some samples."""
        return take(self, index)


def take(value: Any, index: Tensor) -> Any:
    """The samples at `index` of tensors (B,…), or of named tuples of them."""
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    return type(value)(*(take(part, index) for part in value))


class _Draws:
    """Columns of uniform numbers, used up one after the other, for all samples at once."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._columns = iter(uniforms(seeds, DRAWS).unbind(1))

    def uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * next(self._columns)

    def chance(self, share: float) -> Tensor:
        return next(self._columns) < share

    def choice(self, weights: Sequence[float]) -> Tensor:
        """Index (B,), int64."""
        edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        at = next(self._columns) * edges[-1]
        return torch.searchsorted(edges, at, right=True).clamp_max(len(weights) - 1)

    def around_one(self, low: float, high: float) -> Tensor:
        """Uniform below or above 1, each half of the time, as BasicSR draws exponents."""
        below = self.chance(0.5)
        at = next(self._columns)
        return torch.where(below, low + (min(1, high) - low) * at, max(1, low) + (high - max(1, low)) * at)


def draw_parameters(
    seeds: Sequence[int], config: DegradationConfig, *, height: int, width: int, scale: int
) -> Parameters:
    """Parameters of samples of one size: a function of each sample's seed."""
    draws = _Draws(seeds)
    first = _draw_order(draws, config, "", (height, width), torch.ones(len(seeds), dtype=torch.bool), seeds)
    blurred = draws.chance(config.second_blur_prob)
    second = _draw_order(draws, config, "2", (height / scale, width / scale), blurred, seeds)
    return Parameters(
        first,
        second,
        _draw_sinc(draws, draws.chance(config.final_sinc_prob), SINC_SIDE),
        draws.chance(0.5),
        draws.choice([1, 1, 1]),
    )


def _draw_order(
    draws: _Draws,
    config: DegradationConfig,
    end: str,
    size: tuple[float, float],
    blurred: Tensor,
    seeds: Sequence[int],
) -> Order:
    def option(name: str) -> Any:
        return getattr(config, name + end)

    kernel = _draw_kernel(draws, option, blurred)
    low, high = option("resize_range")
    way = draws.choice(option("resize_prob"))  # up, down, keep
    up, down = draws.uniform(1, max(1, high)), draws.uniform(min(1, low), 1)
    factor = torch.where(way == 0, up, torch.where(way == 1, down, 1.0))
    mode = draws.choice([1, 1, 1])
    gaussian = draws.chance(option("gaussian_noise_prob"))
    sigma, shot = draws.uniform(*option("noise_range")), draws.uniform(*option("poisson_scale_range"))
    return Order(
        kernel,
        (size[0] * factor).long().clamp_min(1),
        (size[1] * factor).long().clamp_min(1),
        mode,
        gaussian,
        torch.where(gaussian, sigma, shot),
        draws.chance(option("gray_noise_prob")),
        draws.uniform(*option("jpeg_range")),
        keys(seeds, stream=2 if end else 1),
    )


def _draw_kernel(draws: _Draws, option: Any, blurred: Tensor) -> KernelParameters:
    side = option("blur_kernel_size")
    sinc = _draw_sinc(draws, draws.chance(option("sinc_prob")), side, by_size=True)
    kind = torch.tensor([KINDS.index(name) for name in option("kernel_list")])[draws.choice(option("kernel_prob"))]
    sigma_x, sigma_y = draws.uniform(*option("blur_sigma")), draws.uniform(*option("blur_sigma"))
    rotation = draws.uniform(-math.pi, math.pi)
    generalized, plateau = draws.around_one(*option("betag_range")), draws.around_one(*option("betap_range"))
    beta = torch.where(kind <= 3, generalized, plateau)
    kind = torch.where(sinc.kind == KINDS.index("sinc"), sinc.kind, kind)
    kind = torch.where(blurred, kind, KINDS.index("none"))
    return KernelParameters(kind, sinc.size, sigma_x, sigma_y, rotation, beta, sinc.omega)


def _draw_sinc(draws: _Draws, sinc: Tensor, side: int, *, by_size: bool = False) -> KernelParameters:
    """A sinc kernel where `sinc`, else none; with `by_size`, kernels of 13 and more may cut lower frequencies."""
    size = 7 + 2 * draws.choice([1] * ((side - 7) // 2 + 1))
    lowest = torch.where((size >= 13) & by_size, math.pi / 5, math.pi / 3)
    omega = lowest + (math.pi - lowest) * draws.uniform(0, 1)
    kind = torch.where(sinc, KINDS.index("sinc"), KINDS.index("none"))
    one = torch.ones_like(omega)
    return KernelParameters(kind, size, one, one, 0 * one, one, omega)
