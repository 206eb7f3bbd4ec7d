"""A fixed filter bank: features for the fault target where no pretrained network is at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.models.filters import ENERGY_CENTER, ENERGY_FLOOR, derivative_kernels

__all__ = ["FilterBank", "FilterFeatures"]


class FilterBank(nn.Module):
    """Log energies of oriented derivatives at three scales: what texture is there, not where each line falls.

    Two patches of the same texture give nearly the same vector even where their pixels do not align; blur,
    ringing, invented texture and added noise each move it. The energies are centered on that of faint texture,
    and one constant channel keeps the cosine of `degradation_target` steady where all others are near zero.

    Shape: images (B,3,H,W) in [0, 1] -> (B,46,ceil(H/stride),ceil(W/stride)).
    """

    kernels: Tensor

    # Chosen by eye on training photos: lost sand and foliage light up, skies and defocus stay dark.
    FLOOR, CENTER, CONSTANT = ENERGY_FLOOR, ENERGY_CENTER, 2.0

    def __init__(self, *, scales: int = 3, stride: int = 8) -> None:
        super().__init__()
        self.scales, self.stride = scales, stride
        self.register_buffer("kernels", derivative_kernels(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        grid = (-(-images.shape[-2] // self.stride), -(-images.shape[-1] // self.stride))
        level = images.contiguous(memory_format=torch.channels_last)  # several times faster here
        features = []
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
        # Half of each cell's energy is its neighborhood's: a fault is seen wherever it falls on the grid.
        neighborhood = F.avg_pool2d(F.pad(energy, [1] * 4, mode="replicate"), 3, 1)
        return (0.5 * energy + 0.5 * neighborhood + self.FLOOR).log() - self.CENTER


class FilterFeatures:
    """`FilterBank`: no weights, no download."""

    name = "filters"
    fingerprint = "filters-1"

    def __init__(self, *, device: str = "cpu") -> None:
        self.bank = FilterBank().to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.bank(images.to(self.device))
