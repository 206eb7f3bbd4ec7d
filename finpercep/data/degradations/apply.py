"""The two-order degradations of BasicSR / Real-ESRGAN (Wang et al. 2021), under the same option names.

blur, resize, noise, JPEG; again blur, resize, noise; then JPEG and [resize to the final size, sinc] in either order.
Unlike there, every sample of a batch has its own parameters, resize factors and modes included, and its own seed: a
sample does not depend on the rest of the batch. Samples of similar intermediate size go through together.

Choices: the photo is degraded as it is, not sharpened first; kernels have odd sides from 7 to `blur_kernel_size`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finpercep.data.degradations.blur_kernels import KINDS, KernelParameters, blur_kernels, filter_each, reflect
from finpercep.data.degradations.compiled import Flag, Integer, compiled
from finpercep.data.degradations.config import DegradationConfig
from finpercep.data.degradations.diff_jpeg import jpeg_each, quantization_tables
from finpercep.data.degradations.draw import SINC_SIDE, Order, Parameters, draw_parameters, take
from finpercep.data.degradations.noise import add_noise, noise_tables
from finpercep.data.degradations.ragged import MODES, Ragged, resize_each

GROUP = 8  # samples that share a canvas: more would waste it on the difference of their sizes
TOLERANCE = 1e-3  # beyond [0, 1], for the rounding of whatever made the images; clamped


class Kernels(NamedTuple):
    """Kernels of a batch, each (B,k,k)."""

    first: Tensor
    second: Tensor
    sinc: Tensor


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
            out[at] = _finish(take(current, index), drawn.take(index), kernels.sinc[at], final, sinc_first)
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
    some = take(images, index)
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
