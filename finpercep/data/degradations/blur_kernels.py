"""Blur kernels of the BasicSR / Real-ESRGAN degradations, a batch at once, and filtering with one per sample."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.degradations.compiled import compiled

KINDS = (
    "iso",
    "aniso",
    "generalized_iso",
    "generalized_aniso",
    "plateau_iso",
    "plateau_aniso",
    "sinc",
    "none",
)


_NO_WIDTH = 1e-9  # of a pixel: all of the weight is in the middle


class KernelParameters(NamedTuple):
    """One kernel per sample, each (B,).

    Attributes:
        kind: index into `KINDS`.
        size: odd side; the kernel is 0 beyond.
        sigma_x, sigma_y: widths along its axes, pixels (isotropic kinds use `sigma_x`).
        rotation: of the axes, radians.
        beta: exponent of generalized and plateau kernels.
        omega: cutoff of sinc kernels, radians per pixel.
    """

    kind: Tensor
    size: Tensor
    sigma_x: Tensor
    sigma_y: Tensor
    rotation: Tensor
    beta: Tensor
    omega: Tensor


def blur_kernels(parameters: KernelParameters, side: int) -> Tensor:
    """Kernels (B,side,side), fp32, each of sum 1.

    With q = x^T Σ^-1 x: Gaussian exp(-q/2); generalized exp(-q^beta/2); plateau 1/(1 + q^beta); sinc the circular
    low-pass ω J1(ω r) / (2π r) (Real-ESRGAN, Wang et al. 2021, sections 3.1 and 3.3); none a single 1, as is a width
    of 0.
    """
    kind, size, sigma_x, sigma_y, rotation, beta, omega = (p.double().view(-1, 1, 1) for p in parameters)
    axis = torch.arange(side, dtype=torch.float64, device=kind.device) - side // 2
    y, x = axis[:, None], axis[None]
    sigma_x, sigma_y = sigma_x.clamp_min(_NO_WIDTH), sigma_y.clamp_min(_NO_WIDTH)
    isotropic = (kind == 0) | (kind == 2) | (kind == 4)
    across = torch.where(isotropic, sigma_x, sigma_y)
    along = x * rotation.cos() + y * rotation.sin()
    beside = y * rotation.cos() - x * rotation.sin()
    q = (along / sigma_x) ** 2 + (beside / across) ** 2
    shaped, sinc = (
        ((kind >= 2) & (kind <= 5)).flatten(),
        (kind == 6).flatten(),
    )  # powers and j1 are slow: only there
    q[shaped] **= beta[shaped]
    value = torch.where((kind == 4) | (kind == 5), 1 / (1 + q), (-0.5 * q).exp())
    radius = torch.hypot(y, x)
    near, cutoff = radius.clamp_min(1e-9), omega[sinc]
    low_pass = cutoff * torch.special.bessel_j1(cutoff * near) / (2 * math.pi * near)
    value[sinc] = torch.where(radius == 0, cutoff**2 / (4 * math.pi), low_pass)
    value = torch.where(kind == 7, (radius == 0).double(), value)
    reach = (size - 1) / 2
    value = value * ((y.abs() <= reach) & (x.abs() <= reach))
    return (value / value.sum((1, 2), keepdim=True)).float()


def filter_each(padded: Tensor, kernels: Tensor) -> Tensor:
    """Filter each sample with its own kernel: directly where there is a C++ kernel, else by FFT.

    Args:
        padded: (B,C,H+k-1,W+k-1), the border already there.
        kernels: (B,k,k), odd k.

    Returns: (B,C,H,W), the correlation (kernels are not flipped; all of the above are symmetric).
    """
    kernel = compiled("degrade_filter", padded)
    if kernel is not None:
        return kernel(padded.contiguous(), kernels.contiguous())
    k = kernels.shape[-1]
    height, width = padded.shape[-2:]
    shape = (_fft_side(height), _fft_side(width))
    spectrum = torch.fft.rfft2(padded, shape)
    spectrum *= torch.fft.rfft2(kernels, shape).conj()[:, None]
    return torch.fft.irfft2(spectrum, shape)[..., : height - k + 1, : width - k + 1]


def _fft_side(n: int) -> int:
    """The next even number whose only prime factors are 2, 3 and 5: quick to transform."""
    n += n % 2
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


def reflect(images: Tensor, border: int) -> Tensor:
    """(B,C,H,W) with `border` pixels of reflection on each side; narrow images are reflected again and again."""
    if border < min(images.shape[-2:]):
        return F.pad(images, [border] * 4, mode="reflect")
    for dim in (-2, -1):
        at = reflected(torch.arange(-border, images.shape[dim] + border), torch.tensor(images.shape[dim]))
        images = images.index_select(dim, at.to(images.device))
    return images


def reflected(at: Tensor, size: Tensor) -> Tensor:
    """Positions outside [0, size) mirrored into it, without repeating the border pixel."""
    period = (2 * (size - 1)).clamp_min(1)
    at = torch.remainder(at, period)
    return torch.minimum(at, period - at).clamp_max(size - 1)
