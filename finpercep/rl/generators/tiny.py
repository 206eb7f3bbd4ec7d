"""The embedded ×4 generator: a small U-Net that makes the detail that bicubic enlargement lacks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.io.hub import model_folder
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import Steps, per_sample
from finpercep.rl.generators.base import FILES, GeneratorModule, read_config

WEIGHTS = Path(__file__).parent / "weights"
SCALE = 4
UNIT = 8.0
"""x0 is this many times the difference to the bicubic image, whose standard deviation is then near `SPREAD`."""
SPREAD = 0.6

SHIFT = 30.0
"""How much of the steps lies at little noise. Large noise decides nothing that the low-resolution image has not decided
already; what a small network gets wrong there, it would have to remove again."""


def embedded_names() -> list[str]:
    """The generators whose weights are part of the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob(f"*/{FILES[0]}"))


def embedded_folder(name_or_path: str | Path) -> str | Path:
    """The folder of an embedded generator, anything else as it is."""
    return WEIGHTS / str(name_or_path) if name_or_path in embedded_names() else name_or_path


class Condition(NamedTuple):
    """The bicubic image (B,3,H,W), and the same by LR pixel (B,48,h,w)."""

    image: Tensor
    pixels: Tensor


class SRTiny(GeneratorModule):
    """x0 is the photo less the bicubic image, one vector of 48 for each low-resolution pixel (`pixel_unshuffle`).

    The network works at low resolution. It is told the bicubic image, and what it predicts is added to the best linear
    guess of v from x alone, scaled so that it is of unit size at all noise levels (as in EDM, arXiv 2206.00364).

    Args:
        widths: channels of the U-Net, from full to half resolution.
        blocks: residual blocks at each of them, on the way down and up.
    """

    scale, channels, stride = SCALE, 3 * SCALE**2, SCALE

    def __init__(self, widths: tuple[int, int] = (48, 96), blocks: int = 2) -> None:
        super().__init__()
        self.config = {"widths": list(widths), "blocks": blocks}
        self.network = UNet(2 * self.channels, self.channels, (widths[0], widths[1]), blocks)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "finpercep-sr-tiny", **hub_options: Any) -> SRTiny:
        """The embedded weights by name, or those of a folder or hub id; in evaluation mode.

        Raises:
            ValueError: nothing of that name, or files that do not fit.
        """
        folder = model_folder(embedded_folder(name_or_path), FILES, known=embedded_names(), **hub_options)
        config = read_config(folder)
        if missing := {"widths", "blocks"} - config.keys():
            raise ValueError(
                f"{folder / FILES[0]}: expected widths and blocks of a generator, got no {min(missing)}; one of a "
                "class of your own is loaded by a function of its module (module:function) that calls load_weights"
            )
        model = cls(tuple(config["widths"]), config["blocks"])
        model.load_weights(folder)
        return model.eval()

    def condition(self, batch: Batch) -> Condition:
        """What the network is told: the bicubic image."""
        return condition_on(batch.lr)

    def velocity(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """v (B,48,h,w) at x and s (B,) or ()."""
        return _velocity(self.network, x, s, condition)

    def encode(self, photo: Tensor, condition: Condition) -> Tensor:
        """x0 of photos."""
        return F.pixel_unshuffle(UNIT * (photo - condition.image), SCALE)

    def decode(self, x0: Tensor, condition: Condition) -> Tensor:
        """Images of x0, clamped to [0, 1]."""
        return (condition.image + F.pixel_shuffle(x0, SCALE).float() / UNIT).clamp(0, 1)

    def steps(self, count: int) -> Steps:
        """Levels t/(t + SHIFT·(1-t)) for evenly spaced t from 1 to 0."""
        even = [1 - i / count for i in range(count + 1)]
        s = tuple(t / (t + SHIFT * (1 - t)) for t in even)
        return Steps(s, s[:-1])


def condition_on(lr: Tensor) -> Condition:
    """The bicubic image of low-resolution images, in [0, 1]."""
    image = F.interpolate(lr, scale_factor=SCALE, mode="bicubic", align_corners=False).clamp(0, 1)
    return Condition(image, F.pixel_unshuffle(image, SCALE))


def _velocity(network: UNet, x: Tensor, s: Tensor | float, condition: Condition) -> Tensor:
    level = torch.as_tensor(s, dtype=x.dtype, device=x.device).expand(len(x))
    by_image = per_sample(level, x)
    variance = ((1 - by_image) * SPREAD).square() + by_image.square()  # of x
    guess = (by_image - (1 - by_image) * SPREAD**2) / variance * x  # E[v | x] of Gaussian x0
    inputs = torch.cat([x / variance.sqrt(), (condition.pixels - 0.5) * 4], 1)
    return guess + SPREAD / variance.sqrt() * network(inputs.to(x.dtype), level)


class UNet(nn.Module):
    """Two resolutions, residual blocks, each told the noise level by a scale and a shift of its channels."""

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, int], blocks: int) -> None:
        super().__init__()
        fine, coarse = widths
        self.embed = nn.Sequential(nn.Linear(32, coarse), nn.SiLU(), nn.Linear(coarse, coarse), nn.SiLU())
        self.enter = nn.Conv2d(inputs, fine, 3, padding=1)
        self.fine_in = nn.ModuleList(Block(fine, coarse) for _ in range(blocks))
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.coarse = nn.ModuleList(Block(coarse, coarse) for _ in range(2 * blocks))
        self.up = nn.Conv2d(coarse, 4 * fine, 1)
        self.fine_out = nn.ModuleList(Block(fine, coarse) for _ in range(blocks))
        self.leave = nn.Conv2d(fine, outputs, 3, padding=1)
        silence(self.leave)

    def forward(self, inputs: Tensor, level: Tensor) -> Tensor:
        """(B,outputs,h,w) of inputs (B,inputs,h,w), any h and w, and levels (B,)."""
        height, width = inputs.shape[-2:]
        padded = F.pad(inputs, (0, width % 2, 0, height % 2), mode="replicate")
        told = self.embed(waves(level))
        x = self.enter(padded)
        for block in self.fine_in:
            x = block(x, told)
        deep = self.down(x)
        for block in self.coarse:
            deep = block(deep, told)
        x = x + F.pixel_shuffle(self.up(deep), 2)
        for block in self.fine_out:
            x = block(x, told)
        return self.leave(F.silu(x))[..., :height, :width]


class Block(nn.Module):
    """x + conv(silu(conv(norm(x)·(1 + scale) + shift)))."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.tell = nn.Linear(told, 2 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        silence(self.second)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.tell(told)[..., None, None].chunk(2, 1)
        return x + self.second(F.silu(self.first(F.silu(self.norm(x) * (1 + scale) + shift))))


def silence(layer: nn.Conv2d) -> None:
    """Begin at 0: the network is then the identity, or the linear guess, before it learns."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def waves(level: Tensor) -> Tensor:
    """Noise levels (B,) as 16 sines and cosines of rising frequency (B,32)."""
    frequencies = torch.exp(torch.linspace(0, math.log(100), 16, device=level.device, dtype=level.dtype))
    angles = 2 * level[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)
