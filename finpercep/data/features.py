"""A fixed filter bank: features for the fault target where no pretrained network is at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Opponent colours: luminance, and two chroma axes at half weight (the eye resolves chroma less finely).
_OPPONENT = ((0.299, 0.587, 0.114), (0.5, -0.25, -0.25), (0.25, -0.5, 0.25))


def _derivative_kernels() -> Tensor:
    """(5,1,3,3): derivatives along x, y and both diagonals, and a Laplacian, each of unit absolute sum."""
    x = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    diagonal = torch.tensor([[-2.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, 1.0, 2.0]])
    laplacian = torch.tensor([[1.0, 1.0, 1.0], [1.0, -8.0, 1.0], [1.0, 1.0, 1.0]])
    kernels = torch.stack([x, x.T, diagonal, diagonal.flip(1), laplacian])
    return (kernels / kernels.abs().sum((1, 2), keepdim=True))[:, None]


class FilterBank(nn.Module):
    """Log energies of oriented derivatives at three scales: what texture is there, not where each line falls.

    Two patches of the same texture give nearly the same vector even where their pixels do not align; blur,
    ringing, invented texture and added noise each move it. The energies are centred on that of faint texture,
    and one constant channel keeps the cosine of `degradation_target` steady where all others are near zero.

    Shape: images (B,3,H,W) in [0, 1] -> (B,46,ceil(H/stride),ceil(W/stride)).
    """

    kernels: Tensor

    # Chosen by eye on training photos: lost sand and foliage light up, skies and defocus stay dark.
    FLOOR = 0.002
    CENTER = -4.5
    CONSTANT = 2.0

    def __init__(self, *, scales: int = 3, stride: int = 8) -> None:
        super().__init__()
        self.scales, self.stride = scales, stride
        # [15, 3, 3, 3]: each derivative of each opponent color, as one convolution of RGB.
        kernels = torch.tensor(_OPPONENT)[:, None, :, None, None] * _derivative_kernels()[None]
        self.register_buffer("kernels", kernels.flatten(0, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        grid = (-(-images.shape[-2] // self.stride), -(-images.shape[-1] // self.stride))
        level, features = images, []
        for scale in range(self.scales):
            if scale:
                level = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
            features.append(self._log_energy(level, grid))
        constant = torch.full_like(features[0][:, :1], self.CONSTANT)
        return torch.cat([*features, constant], dim=1)

    def _log_energy(self, level: Tensor, grid: tuple[int, int]) -> Tensor:
        padded = F.pad(level, [1] * 4, mode="replicate")
        energy = F.conv2d(padded, self.kernels.to(level.dtype)).abs()
        energy = F.adaptive_avg_pool2d(energy, grid)
        # Half of each cell's energy is its neighbourhood's: a fault is seen wherever it falls on the grid.
        neighbourhood = F.avg_pool2d(F.pad(energy, [1] * 4, mode="replicate"), 3, 1)
        return (0.5 * energy + 0.5 * neighbourhood + self.FLOOR).log() - self.CENTER
