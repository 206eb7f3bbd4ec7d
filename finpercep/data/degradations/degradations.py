"""The two-order degradations of BasicSR / Real-ESRGAN (Wang et al. 2021), under the same option names.

blur, resize, noise, JPEG; again blur, resize, noise; then JPEG and [resize to the final size, sinc] in either order.
Unlike there, every sample of a batch has its own parameters, resize factors and modes included, and its own seed: a
sample does not depend on the rest of the batch. Samples of similar intermediate size go through together.

Choices: the photo is degraded as it is, not sharpened first; kernels have odd sides from 7 to `blur_kernel_size`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finpercep.data.degradations.blur_kernels import KINDS, KernelParameters, blur_kernels, filter_each, reflect
from finpercep.data.degradations.compiled import Flag, Integer, compiled
from finpercep.data.degradations.diff_jpeg import jpeg_each, quantization_tables
from finpercep.data.degradations.noise import add_noise, noise_tables
from finpercep.data.degradations.ragged import MODES, Ragged, resize_each
from finpercep.data.degradations.random_bits import keys, uniforms

GROUP = 8  # samples that share a canvas: more would waste it on the difference of their sizes
SINC_SIDE = 21  # of the final sinc kernel
TOLERANCE = 1e-3  # beyond [0, 1], for the rounding of whatever made the images; clamped
DRAWS = 64  # random numbers per sample, more than are used
Range = tuple[float, float]


@dataclass(frozen=True)
class DegradationConfig:
    """Options of BasicSR's Real-ESRGAN configuration, with its defaults; names ending in 2 are the second order's.

    Attributes:
        blur_kernel_size: largest side of the kernels, odd.
        kernel_list, kernel_prob: kinds of kernels and their weights.
        sinc_prob, final_sinc_prob: probability of a sinc kernel instead, and of the final sinc filter.
        blur_sigma: range of the kernels' widths, pixels.
        betag_range, betap_range: exponents of generalized and plateau kernels; below and above 1 equally often.
        resize_prob: weights of enlarging, shrinking and keeping the size.
        resize_range: smallest and largest factor.
        gaussian_noise_prob: probability of Gaussian noise; else it is Poisson noise.
        noise_range: its standard deviation, 8-bit levels.
        poisson_scale_range: strength of Poisson noise; 1 is that of as many photons as levels.
        gray_noise_prob: probability that the noise is the same in all channels.
        jpeg_range: quality.
        second_blur_prob: probability of the second blur.
    """

    blur_kernel_size: int = 21
    kernel_list: tuple[str, ...] = KINDS[:6]
    kernel_prob: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob: float = 0.1
    blur_sigma: Range = (0.2, 3.0)
    betag_range: Range = (0.5, 4.0)
    betap_range: Range = (1.0, 2.0)
    resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Range = (0.15, 1.5)
    gaussian_noise_prob: float = 0.5
    noise_range: Range = (1.0, 30.0)
    poisson_scale_range: Range = (0.05, 3.0)
    gray_noise_prob: float = 0.4
    jpeg_range: Range = (30.0, 95.0)

    second_blur_prob: float = 0.8
    blur_kernel_size2: int = 21
    kernel_list2: tuple[str, ...] = KINDS[:6]
    kernel_prob2: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob2: float = 0.1
    blur_sigma2: Range = (0.2, 1.5)
    betag_range2: Range = (0.5, 4.0)
    betap_range2: Range = (1.0, 2.0)
    resize_prob2: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize_range2: Range = (0.3, 1.2)
    gaussian_noise_prob2: float = 0.5
    noise_range2: Range = (1.0, 25.0)
    poisson_scale_range2: Range = (0.05, 2.5)
    gray_noise_prob2: float = 0.4
    jpeg_range2: Range = (30.0, 95.0)

    final_sinc_prob: float = 0.8

    def __post_init__(self) -> None:
        for end in ("", "2"):
            kinds, weights = getattr(self, f"kernel_list{end}"), getattr(self, f"kernel_prob{end}")
            if len(kinds) != len(weights) or not set(kinds) <= set(KINDS[:6]):
                raise ValueError(
                    f"kernel_list{end}: expected kinds of {KINDS[:6]}, each with a weight in kernel_prob{end}, "
                    f"got {kinds} and {weights}"
                )
            side = getattr(self, f"blur_kernel_size{end}")
            if side % 2 == 0 or side < 7:
                raise ValueError(f"blur_kernel_size{end}: expected an odd side of 7 or more, got {side}")
        for option in fields(self):
            value = getattr(self, option.name)
            if "range" in option.name or "sigma" in option.name:
                if not 0 <= value[0] <= value[1]:
                    raise ValueError(f"{option.name}: expected 0 <= low <= high, got {value}")
            elif option.name.startswith("resize_prob"):
                if len(value) != 3 or min(value) < 0 or sum(value) <= 0:
                    raise ValueError(f"{option.name}: expected three weights (up, down, keep), got {value}")
            elif isinstance(value, float) and not 0 <= value <= 1:
                raise ValueError(f"{option.name}: expected a probability in [0, 1], got {value}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> DegradationConfig:
        """Take the known options out of a BasicSR configuration, wherever they are nested; the rest is not ours.

        Raises:
            ValueError: it has none of them, or one that makes no sense.
        """
        known = {option.name for option in fields(cls)}
        found: dict[str, Any] = {}

        def collect(mapping: Mapping[str, Any]) -> None:
            for name, value in mapping.items():
                if isinstance(value, Mapping):
                    collect(value)
                elif name in known:
                    found[name] = tuple(value) if isinstance(value, list) else value

        collect(options)
        if not found:
            raise ValueError(f"degradation: expected options such as blur_sigma, got {sorted(options)[:8]}")
        numbers = {o.name for o in fields(cls) if isinstance(o.default, float)}
        values: dict[str, Any] = {name: float(v) if name in numbers else v for name, v in found.items()}
        return cls(**values)


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
        return _take(self, index)


class Kernels(NamedTuple):
    """Kernels of a batch, each (B,k,k)."""

    first: Tensor
    second: Tensor
    sinc: Tensor


def _take(value: Any, index: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    return type(value)(*(_take(part, index) for part in value))


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


@torch.no_grad()
def degrade(
    images: Tensor, seeds: Sequence[int], config: DegradationConfig | None = None, *, scale: int = 4
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Low-resolution versions of photos, and what was drawn for each.

    Args:
        images: (B,3,H,W), float in [0, 1], sides multiples of `scale`.
        seeds: one per sample; it alone decides the sample's degradation.

    Returns: (B,3,H/scale,W/scale) in [0, 1], multiples of 1/255, and a plain dict per sample.
    Raises:
        TypeError: images that are not float32 or float64.
        ValueError: shapes, the number of seeds, or values that are not finite or outside [0, 1], naming the sample.
    """
    config = config or DegradationConfig()
    _check_values(images)
    if images.ndim != 4 or images.shape[1] != 3 or any(side % scale for side in images.shape[2:]):
        raise ValueError(f"images: expected (B,3,H,W), sides multiples of {scale}, got {tuple(images.shape)}")
    if len(seeds) != len(images):
        raise ValueError(f"seeds: expected {len(images)}, one per image, got {len(seeds)}")
    batch, channels, height, width = images.shape
    out = images.new_empty(batch, channels, height // scale, width // scale)
    if batch:
        parameters = draw_parameters(seeds, config, height=height, width=width, scale=scale)
        kernels = Kernels(
            blur_kernels(parameters.first.kernel, config.blur_kernel_size),
            blur_kernels(parameters.second.kernel, config.blur_kernel_size2),
            blur_kernels(parameters.sinc, SINC_SIDE),
        )
        if compiled("degrade_samples", images) is not None:
            return _degrade_samples(images, parameters, kernels, out.shape[-2:]), _records(parameters)
        order = torch.argsort(parameters.first.height * parameters.first.width, stable=True)
        for index in order.split(GROUP):
            on_device = index.to(images.device)
            own = Kernels(*(kernel[index].to(images) for kernel in kernels))
            out[on_device] = _degrade_group(images[on_device], parameters.take(index), own, out.shape[-2:])
    return out, _records(parameters) if batch else []


def _check_values(images: Tensor) -> None:
    """Refuse what would silently become almost black or white, or no image at all."""
    if not isinstance(images, Tensor) or images.dtype not in (torch.float32, torch.float64):
        kind = str(images.dtype).removeprefix("torch.") if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: expected a float32 or float64 tensor with values in [0, 1], got {kind}")
    if not images.numel():
        return
    low, high = images.aminmax()
    if bool(low >= -TOLERANCE) and bool(high <= 1 + TOLERANCE):  # NaN fails both
        return
    for sample, image in enumerate(images):
        if not bool(image.isfinite().all()):
            raise ValueError(f"images: expected finite values, sample {sample} has NaN or infinite ones")
    raise ValueError(f"images: expected values in [0, 1], got {float(low):.4g} to {float(high):.4g}")


def _degrade_samples(images: Tensor, drawn: Parameters, kernels: Kernels, final: Sequence[int]) -> Tensor:
    """All stages in C++, sample by sample; `_degrade_group` is the definition."""
    first, second = drawn.first, drawn.second
    count = torch.ones_like(first.height)
    result_size = {Integer.FINAL_HEIGHT: count * final[0], Integer.FINAL_WIDTH: count * final[1]}
    integers = result_size | {
        Integer.HEIGHT: count * images.shape[2],
        Integer.WIDTH: count * images.shape[3],
        Integer.HEIGHT1: first.height,
        Integer.WIDTH1: first.width,
        Integer.HEIGHT2: second.height,
        Integer.WIDTH2: second.width,
        Integer.MODE1: first.mode,
        Integer.MODE2: second.mode,
        Integer.FINAL_MODE: drawn.mode,
        Integer.BILINEAR: count * MODES.index("bilinear"),
    }
    flags = {
        Flag.GAUSSIAN1: first.gaussian,
        Flag.GRAY1: first.grey,
        Flag.GAUSSIAN2: second.gaussian,
        Flag.GRAY2: second.grey,
        Flag.BLURRED: second.kernel.kind != KINDS.index("none"),
        Flag.SINC_FIRST: drawn.sinc_before_jpeg,
    }
    tables = [table for order in (first, second) for table in quantization_tables(order.quality.float())]
    # Each thread takes a run of samples: deal them out by size, so that runs are alike.
    by_size, threads = torch.argsort(first.height * first.width, stable=True), torch.get_num_threads()
    out: Tensor = torch.ops.finpercep.degrade_samples(
        images.contiguous(),
        *kernels,
        torch.stack([integers[column] for column in Integer], 1),
        torch.stack([flags[column] for column in Flag], 1),
        torch.stack([first.strength, second.strength], 1).double(),
        torch.cat([first.key, second.key], 1),
        torch.stack(tables, 1),
        torch.cat([by_size[start::threads] for start in range(threads)]),
        *noise_tables("cpu"),
    )
    return out


def _degrade_group(images: Tensor, drawn: Parameters, kernels: Kernels, final: Sequence[int]) -> Tensor:
    first, second = drawn.first, drawn.second
    size = torch.full((len(images),), images.shape[2]), torch.full((len(images),), images.shape[3])
    x = filter_each(reflect(images, kernels.first.shape[-1] // 2), kernels.first)
    current = resize_each(Ragged(x, *size), first.height, first.width, first.mode)
    current = _jpeg(_noise(current, first), first.quality)
    current = _blur(current, kernels.second, second.kernel.kind != KINDS.index("none"))
    current = _noise(resize_each(current, second.height, second.width, second.mode), second)
    out = images.new_empty(len(images), 3, *final)
    for sinc_first in (True, False):
        index = torch.nonzero(drawn.sinc_before_jpeg == sinc_first).flatten()
        if len(index):
            at = index.to(images.device)
            out[at] = _finish(_take(current, index), drawn.take(index), kernels.sinc[at], final, sinc_first)
    return (out * 255).round().clamp(0, 255) / 255


def _finish(current: Ragged, drawn: Parameters, kernels: Tensor, final: Sequence[int], sinc_first: bool) -> Tensor:
    """JPEG and [resize to the final size, sinc filter], in one of both orders."""
    quality = drawn.second.quality
    if not sinc_first:
        current = _jpeg(current, quality)
    size = [torch.full_like(current.height, side) for side in final]
    border = SINC_SIDE // 2
    bordered = resize_each(current, size[0], size[1], drawn.mode, border=border, mirror=True).pixels
    x = filter_each(bordered, kernels).clamp(0, 1)
    return jpeg_each(x, quality.to(x.device)) if sinc_first else x


def _blur(images: Ragged, kernels: Tensor, blurred: Tensor) -> Ragged:
    """Filter the samples that are `blurred`, bool (B,), each with its own border reflected."""
    index = torch.nonzero(blurred).flatten()
    if not len(index):
        return images
    some = _take(images, index)
    same = torch.ones_like(some.height)  # "bilinear" to the same size: only the border is new
    border = kernels.shape[-1] // 2
    bordered = resize_each(some, some.height, some.width, same, border=border, mirror=True).pixels
    filtered = filter_each(bordered, kernels[index.to(kernels.device)])
    pixels = images.pixels[..., : int(images.height.max()), : int(images.width.max())].clone()
    height, width = filtered.shape[-2:]
    pixels[index.to(pixels.device), :, :height, :width] = filtered
    return Ragged(pixels, images.height, images.width)


def _noise(images: Ragged, order: Order) -> Ragged:
    return add_noise(images, order.gaussian, order.strength, order.grey, order.key)


def _jpeg(images: Ragged, quality: Tensor) -> Ragged:
    return images._replace(pixels=jpeg_each(images.pixels, quality.to(images.pixels.device)))


def _records(drawn: Parameters) -> list[dict[str, Any]]:
    """The parameters of each sample, plain and rounded, under the names of the options."""

    def kernels(parameters: KernelParameters) -> list[dict[str, Any]]:
        columns: dict[str, list[Any]] = {
            name: [round(float(value), 4) for value in column.tolist()] for name, column in parameters._asdict().items()
        }
        columns["kind"] = [KINDS[kind] for kind in parameters.kind.tolist()]
        columns["size"] = parameters.size.tolist()
        return _rows(columns)

    def orders(drawn: Order) -> list[dict[str, Any]]:
        columns = {
            "kernel": kernels(drawn.kernel),
            "size": torch.stack([drawn.height, drawn.width], 1).tolist(),
            "mode": [MODES[mode] for mode in drawn.mode.tolist()],
            "noise": ["gaussian" if gaussian else "poisson" for gaussian in drawn.gaussian.tolist()],
            "strength": [round(value, 4) for value in drawn.strength.tolist()],
            "gray": drawn.grey.tolist(),
            "jpeg": [round(value, 2) for value in drawn.quality.tolist()],
        }
        return _rows(columns)

    columns = {
        "first": orders(drawn.first),
        "second": orders(drawn.second),
        "final_sinc": kernels(drawn.sinc),
        "sinc_before_jpeg": drawn.sinc_before_jpeg.tolist(),
        "final_mode": [MODES[mode] for mode in drawn.mode.tolist()],
    }
    return _rows(columns)


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
