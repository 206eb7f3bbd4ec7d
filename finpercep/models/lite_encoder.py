"""An encoder that knows objects and sees every pixel: EfficientNet-lite0 beside the energies of `ConvEncoder`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.models.conv_encoder import ConvEncoder
from finpercep.models.inverted_residual import InvertedResidual, SameConv
from finpercep.models.precision import KeepsFloat32, without_autocast

# One row a stage of EfficientNet-lite0: blocks, kernel, stride, expansion, width. The last stage (320) is left out.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192))
STEM_WIDTH = 32
TAPS = {1: 0, 2: 1, 4: 2, 5: 3}
"""Stage -> level of the pyramid: strides 4, 8, 16, 32."""
INJECTIONS = {1: 0, 2: 1, 3: 2}
"""Stage -> level of the energy path that is added to its output."""
# ImageNet's normalization as EfficientNet-lite has it: (255 x - 127) / 128.
SCALE, SHIFT = 255 / 128, -127 / 128


class LiteEncoder(KeepsFloat32):
    """EfficientNet-lite0 up to stride 32 and a `ConvEncoder` of energies, joined at every level.

    The energies see each pixel's finest scale, which strided convolutions that were trained on objects throw away; the
    EfficientNet knows what things look like. The energy path is added into it behind strides 4, 8 and 16, through 1x1
    convolutions that start at zero, and stands beside it in what the decoder gets. Batch normalizations are folded:
    nothing depends on a batch, not in training either. All of it is float32 in models of half precision and under
    autocast: in bfloat16 the fine stages alone turn gradients to pixels.

    Shape: images (B,3,H,W) in [0, 1], sides multiples of 32 -> list of (B,C_i,H/s_i,W/s_i), strides 4, 8, 16, 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.energy = ConvEncoder()
        self.stem = SameConv(3, STEM_WIDTH, 3, 2)
        self.stages, width = nn.ModuleList(), STEM_WIDTH
        for count, kernel, stride, expansion, outputs in STAGES:
            blocks = []
            for i in range(count):
                blocks.append(InvertedResidual(width, outputs, kernel, stride if i == 0 else 1, expansion))
                width = outputs
            self.stages.append(nn.Sequential(*blocks))
        fine = self.energy.channels
        self.inject = nn.ModuleDict(
            {str(stage): _silent(fine[level], STAGES[stage][-1]) for stage, level in INJECTIONS.items()}
        )
        widths = [STAGES[stage][-1] for stage in TAPS]
        self.channels = [a + b for a, b in zip(widths, [*fine, fine[-1]], strict=True)]
        self.upsampling = [1] * len(self.channels)  # already a pyramid
        self.stride = 32
        self.radius = _receptive_radius()
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        with without_autocast(images.device):
            return self._features(images.to(self.stem.weight.dtype))

    def _features(self, images: Tensor) -> list[Tensor]:
        energies = self.energy(images)
        beside = [*energies, F.avg_pool2d(energies[-1], 2)]
        pixels = images.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(pixels * SCALE + SHIFT), inplace=True)
        features = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in INJECTIONS:
                x = x + self.inject[str(i)](energies[INJECTIONS[i]])
            if i in TAPS:
                features.append(torch.cat([x, beside[TAPS[i]]], 1))
        return features


def _silent(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution that gives zeros until it is trained."""
    layer = nn.Conv2d(inputs, outputs, 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _receptive_radius() -> int:
    """How many pixels away an input pixel can still move a feature, to the next multiple of the stride."""
    radius, step = 2, 2
    for count, kernel, stride, _, _ in STAGES:
        for i in range(count):
            radius += (kernel // 2) * step
            step *= stride if i == 0 else 1
    return -(-(radius + step) // 32) * 32
