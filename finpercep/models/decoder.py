"""FPN decoder: encoder features to the perceptual degradation map (supplement, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.models.conv3x3 import conv3x3_relu
from finpercep.models.norms import convolution
from finpercep.models.precision import KeepsFloat32, without_autocast

WIDTHS = {"light": 32, "full": 128}
"""Named decoder widths [open in the paper]: stage 1 of the curriculum grows the light one, stage 2 the full one."""


class FPNDecoder(nn.Module):
    """Lateral 1x1 convolutions, a top-down path of upsample-and-add, two 3x3 convolutions, sigmoid.

    Args:
        channels: channels of the encoder's features, fine to coarse.
        upsampling: how much finer each level is made before the top-down path (1 for a hierarchical encoder). A
            plain vision transformer has one resolution; learned x2 steps make its pyramid [open in the paper].
        width: common width, or "light" / "full".
        norm: whether the first 3x3 convolution is normalized, for training; see `norms`.

    Shape: list of (B,C_i,h_i,w_i), size (H,W) -> (B,1,H,W) in [0, 1], 1 = degraded.

    Raises:
        ValueError: a width that is neither a name nor a positive number, or upsampling that is no power of two.
    """

    def __init__(
        self,
        channels: Sequence[int],
        upsampling: Sequence[int],
        width: int | str = "light",
        *,
        norm: bool = False,
    ) -> None:
        super().__init__()
        if width not in WIDTHS and (type(width) is not int or width < 1):
            raise ValueError(f"width: expected {', '.join(WIDTHS)} or a number of channels, got {width!r}")
        width = WIDTHS[width] if isinstance(width, str) else width
        self.lateral = nn.ModuleList(convolution(c, width, 1, norm=False) for c in channels)
        self.upsample = nn.ModuleList(_learned_upsampling(width, factor) for factor in upsampling)
        self.conv1 = convolution(width, width, 3, norm=norm)
        self.conv2 = nn.Conv2d(width, 1, 3, padding=1)
        assert self.conv2.bias is not None
        nn.init.constant_(self.conv2.bias, -2.0)  # at first the map is near clean
        nn.init.normal_(self.conv2.weight, std=0.01)  # and nearly flat

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        levels = [up(lateral(f)) for f, lateral, up in zip(features, self.lateral, self.upsample, strict=True)]
        x = levels[-1]
        for level in reversed(levels[:-1]):
            x = F.interpolate(x, level.shape[-2:], mode="bilinear", align_corners=False).add_(level)
        logits = self.conv2(conv3x3_relu(self.conv1, x))
        return F.interpolate(logits, size, mode="bilinear", align_corners=False).sigmoid_()


class Float32Decoder(KeepsFloat32, FPNDecoder):
    """The decoder behind an encoder that keeps float32: in float16, gradients through a map of many pixels end as 0."""

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        with without_autocast(features[0].device):
            return super().forward(features, size)


def _learned_upsampling(width: int, factor: int) -> nn.Module:
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"upsampling: expected powers of two, got {factor}")
    steps: list[nn.Module] = []
    while factor > 1:
        steps += [nn.ConvTranspose2d(width, width, 2, stride=2), nn.GELU()]
        factor //= 2
    return nn.Sequential(*steps)
