"""Fixed derivative filters, shared by the small encoder and by the filter bank of the fault target."""

from __future__ import annotations

import torch
from torch import Tensor

# Opponent colors: luminance, and two chroma axes at half weight (the eye resolves chroma less finely).
OPPONENT = ((0.299, 0.587, 0.114), (0.5, -0.25, -0.25), (0.25, -0.5, 0.25))

KERNELS = 15
"""Filters in `derivative_kernels`."""

# Log energies: below the floor, energy is quantization noise; the center is that of faint texture.
ENERGY_FLOOR = 0.002
# Derivatives of 8-bit pixels are exactly 0 in many places. What rounding leaves of them has a sign, but no direction.
ENERGY_ZERO = 3e-7
ENERGY_CENTER = -4.5


def _derivatives() -> Tensor:
    """(5,1,3,3): derivatives along x, y and both diagonals, and a Laplacian, each of unit absolute sum."""
    x = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=torch.float32)
    diagonal = torch.tensor([[-2.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, 1.0, 2.0]], dtype=torch.float32)
    laplacian = torch.tensor([[1.0, 1.0, 1.0], [1.0, -8.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float32)
    kernels = torch.stack([x, x.T, diagonal, diagonal.flip(1), laplacian])
    return (kernels / kernels.abs().sum((1, 2), keepdim=True))[:, None]


def derivative_kernels() -> Tensor:
    """(15,3,3,3): each of five derivatives of each of three opponent colors, as convolutions of RGB."""
    kernels = torch.tensor(OPPONENT, dtype=torch.float32)[:, None, :, None, None] * _derivatives()[None]
    return kernels.flatten(0, 1)
