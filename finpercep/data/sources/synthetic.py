"""Faults made without any super-resolution model: our own low-resolution copies and naive reconstructions.

They serve the offline demo, and training, where they widen what the model has seen beyond a few real sources.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.degradations.blur_kernels import reflect
from finpercep.data.image_ops import gaussian_blur, jpeg, resize
from finpercep.data.randomness import chance, integer, uniform32
from finpercep.data.sources.quilting import quilted

__all__ = ["SYNTHETIC_SOURCES", "low_resolution", "synthetic_source"]

Synthetic = Callable[[Tensor, torch.Generator], Tensor]


def _noise(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return (image + sigma * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def low_resolution(image: Tensor, generator: torch.Generator, *, scale: float) -> Tensor:
    """Blur, shrink by `scale`, add noise, sometimes JPEG: what a super-resolution model is given."""
    small = (max(4, round(image.shape[-2] / scale)), max(4, round(image.shape[-1] / scale)))
    out = resize(gaussian_blur(image, uniform32(0.2, 0.5 * scale, generator)), small)
    out = _noise(out, uniform32(0.0, 0.03, generator), generator)
    if chance(0.4, generator):
        out = jpeg(out, int(uniform32(50, 95, generator)))
    return out


def _restore(image: Tensor, generator: torch.Generator, mode: str) -> Tensor:
    small = low_resolution(image, generator, scale=uniform32(2.0, 4.5, generator))
    return resize(small, (image.shape[-2], image.shape[-1]), mode)


def smooth(image: Tensor, generator: torch.Generator) -> Tensor:
    """Low resolution enlarged by bicubic interpolation: lost detail."""
    return _restore(image, generator, "bicubic")


def oversharp(image: Tensor, generator: torch.Generator) -> Tensor:
    """Enlarged, then unsharp-masked too hard: halos and ringing."""
    base = _restore(image, generator, "bicubic")
    strength = uniform32(1.0, 4.0, generator)
    return (base + strength * (base - gaussian_blur(base, uniform32(1.0, 2.5, generator)))).clamp(0, 1)


def blocky(image: Tensor, generator: torch.Generator) -> Tensor:
    """Enlarged without interpolation: stairs."""
    return _restore(image, generator, "nearest")


def checkerboard(image: Tensor, generator: torch.Generator) -> Tensor:
    """Enlarged, with a periodic pattern like that of strided transposed convolutions."""
    base = _restore(image, generator, "bicubic")
    period = integer(2, 4, generator)
    tile = torch.randn(3, period, period, generator=generator)
    pattern = _repeated(tile, image)
    detail = (base - gaussian_blur(base, 2.0)).abs().mean(0, keepdim=True)
    return (base + pattern * (uniform32(0.01, 0.05, generator) + uniform32(0.3, 1.0, generator) * detail)).clamp(0, 1)


def _repeated(tile: Tensor, image: Tensor) -> Tensor:
    """A tile (C,h,w) again and again, over the size of an image."""
    height, width = image.shape[-2:]
    return tile.repeat(1, height // tile.shape[1] + 1, width // tile.shape[2] + 1)[:, :height, :width]


def patterned(image: Tensor, generator: torch.Generator) -> Tensor:
    """A periodic pattern, or a flat color, over the image, from faint to nothing else: what a generator finds that
    climbs a score which has only seen faults of images.
    """
    rows, columns = integer(1, 8, generator), integer(1, 8, generator)
    gray = chance(0.5, generator)
    tile = torch.randn(1 if gray else 3, rows, columns, generator=generator)
    if chance(0.5, generator):  # all on or off: as crisp as pixels can be
        tile = tile.sign()
    pattern = _repeated(tile, image)
    level = uniform32(0.0, 1.0, generator)
    cover = uniform32(0.0, 1.0, generator) if chance(0.5, generator) else 0.0
    amplitude = 0.03 * (0.5 / 0.03) ** uniform32(0.0, 1.0, generator)
    return (image * (1 - cover) + level * cover + amplitude * pattern).clamp(0, 1)


def grain(image: Tensor, generator: torch.Generator) -> Tensor:
    """Enlarged, with band-limited noise that follows the detail: invented texture."""
    base = _restore(image, generator, "bicubic")
    band = gaussian_blur(torch.randn(image.shape, generator=generator), uniform32(0.5, 1.5, generator))
    band = band / band.std()
    detail = gaussian_blur((base - gaussian_blur(base, 3.0)).abs(), 2.0)
    return (base + band * (uniform32(0.0, 0.03, generator) + uniform32(0.4, 1.2, generator) * detail)).clamp(0, 1)


def painterly(image: Tensor, generator: torch.Generator) -> Tensor:
    """Repeated median filtering and sharpening: flat strokes with crisp edges."""
    base = _restore(image, generator, "bicubic")
    for _ in range(integer(1, 3, generator)):
        patches = F.unfold(reflect(base[:, None], 1), 3)
        base = patches.median(dim=1).values.view_as(base)
    return (base + uniform32(0.5, 2.0, generator) * (base - gaussian_blur(base, 1.2))).clamp(0, 1)


def compressed(image: Tensor, generator: torch.Generator) -> Tensor:
    """Strong JPEG at full size: blocks and mosquito noise."""
    return jpeg(image, int(uniform32(5, 25, generator)))


def reinvented(image: Tensor, generator: torch.Generator) -> Tensor:
    """Texture of the right kind and strength that is not the photo's, as latent autoencoders and diffusion write it.

    The finest band is exchanged for noise of the same spectrum, as strong at each place as the photo's own texture;
    strong edges keep part of their own.
    """
    base = gaussian_blur(image, uniform32(0.8, 2.0, generator))
    band = image - base
    local = gaussian_blur(band.square(), 2.0).clamp_min(1e-8).sqrt()
    noise = _other_phases(band / local, torch.randn(image.shape[-2:], generator=generator))
    noise = noise / gaussian_blur(noise.square(), 2.0).clamp_min(1e-8).sqrt()
    kept = uniform32(0.0, 0.6, generator)
    edges = (local.mean(0, keepdim=True) / 0.15).clamp(0, 0.5)
    share = kept + (1 - kept) * edges
    strength = uniform32(0.6, 1.2, generator)
    return (base + share * band + (1 - share.square()).sqrt() * strength * local * noise).clamp(0, 1)


def _other_phases(texture: Tensor, noise: Tensor) -> Tensor:
    """A texture (3,H,W) with the spectrum of the given one and the phases of noise (H,W).

    By NumPy: torch's transforms give other last bits with another number of threads, as loader processes have.
    """
    phases = np.fft.rfft2(noise.double().numpy())
    spectrum = np.abs(np.fft.rfft2(texture.double().numpy())) * phases / np.maximum(np.abs(phases), 1e-8)
    return torch.from_numpy(np.fft.irfft2(spectrum, noise.shape)).to(texture.dtype)


def wobbly(image: Tensor, generator: torch.Generator) -> Tensor:
    """Lines bent by a pixel or two and drawn again too crisply: letters turned into other shapes."""
    height, width = image.shape[-2:]
    field = gaussian_blur(torch.randn((3, height, width), generator=generator), uniform32(2.0, 6.0, generator))
    field = field / field.std() * uniform32(0.5, 1.3, generator)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = (columns + field[0]) * 2 / max(width - 1, 1) - 1
    y = (rows + field[1]) * 2 / max(height - 1, 1) - 1
    grid = torch.stack([x, y], -1).to(image.dtype)[None]
    base = F.grid_sample(gaussian_blur(image, 0.6)[None], grid, "bicubic", "reflection", align_corners=True)[0]
    return (base + uniform32(0.5, 2.0, generator) * (base - gaussian_blur(base, 1.0))).clamp(0, 1)


SYNTHETIC_SOURCES: dict[str, Synthetic] = {
    function.__name__: function
    for function in (
        smooth,
        oversharp,
        blocky,
        checkerboard,
        grain,
        painterly,
        compressed,
        reinvented,
        wobbly,
        patterned,
        quilted,
    )
}


def synthetic_source(name: str, image: Tensor, generator: torch.Generator) -> Tensor:
    """Apply the named synthetic source to a float image (3,H,W) in [0, 1]; the result has the same shape.

    Raises:
        ValueError: unknown name.
    """
    if name not in SYNTHETIC_SOURCES:
        raise ValueError(f"source: expected one of {sorted(SYNTHETIC_SOURCES)}, got {name!r}")
    return SYNTHETIC_SOURCES[name](image, generator)
