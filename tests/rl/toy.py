"""A generator and rewards small enough for finite differences in double precision."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.models import RewardOutput
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import Steps

DOUBLE = torch.float64


class Toy(nn.Module):
    """×2, in pixels; x0 is the logit of the image."""

    scale, channels, stride = 2, 3, 1

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(7, 5, 3, padding=1, dtype=DOUBLE)
        self.second = nn.Conv2d(5, 3, 3, padding=1, dtype=DOUBLE)
        draw = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw, dtype=DOUBLE)
        self.reference = [copy.deepcopy(self).requires_grad_(False)]

    def condition(self, batch: Batch) -> Tensor:
        return F.interpolate(batch.lr, scale_factor=2)

    def velocity(self, x: Tensor, s: Tensor, condition: Tensor) -> Tensor:
        level = s.to(x).view(-1, 1, 1, 1).expand(len(x), 1, *x.shape[2:])
        return self.second(torch.tanh(self.first(torch.cat([x, condition, level], 1))))

    @torch.no_grad()
    def reference_velocity(self, x: Tensor, s: Tensor, condition: Tensor) -> Tensor:
        return self.reference[0].velocity(x, s, condition)

    def encode(self, photo: Tensor, condition: Tensor) -> Tensor:
        return torch.logit(photo, 0.01)

    def decode(self, x0: Tensor, condition: Tensor) -> Tensor:
        return torch.sigmoid(x0)

    def steps(self, count: int) -> Steps:
        s = tuple(1 - i / count for i in range(count + 1))
        return Steps(s, s[:-1])

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def move(self, by: float = 0.02) -> Toy:
        """Away from the reference."""
        draw = torch.Generator().manual_seed(4)
        for parameter in self.parameters():
            parameter.data += by * torch.randn(parameter.shape, generator=draw, dtype=DOUBLE)
        return self


class Red:
    """A reward with gradients: how red."""

    fingerprint = "red"

    def __call__(self, images: Tensor) -> RewardOutput:
        return RewardOutput(images[:, 0].flatten(1).mean(1), None)


class Green(Red):
    """How red; the map is how green."""

    def __call__(self, images: Tensor) -> RewardOutput:
        return RewardOutput(super().__call__(images).score, images[:, 1:2])


class Given:
    """A reward that answers what it is told to."""

    fingerprint = "given"

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def __call__(self, images: Tensor) -> RewardOutput:
        return RewardOutput(torch.tensor(self.values, dtype=images.dtype), None)


def batch(count: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(5)
    photo = torch.rand(count, 3, 6, 6, generator=draw, dtype=DOUBLE)
    return Batch(F.avg_pool2d(photo, 2), torch.arange(count) + 7, photo)


def check_gradient(generator: nn.Module, loss) -> None:
    """The gradient of `loss()` along a random direction of the weights, against a central difference."""
    draw = torch.Generator().manual_seed(6)
    directions = [torch.randn(p.shape, generator=draw, dtype=DOUBLE) for p in generator.parameters()]
    generator.zero_grad()
    loss().backward()
    exact = sum(float((p.grad * d).sum()) for p, d in zip(generator.parameters(), directions, strict=True))
    values, width = [], 1e-5
    for sign in (1, -2):
        for p, d in zip(generator.parameters(), directions, strict=True):
            p.data += sign * width * d
        values.append(float(loss().detach()))
    for p, d in zip(generator.parameters(), directions, strict=True):
        p.data += width * d
    numeric = (values[0] - values[1]) / (2 * width)
    assert abs(exact) > 1e-6
    assert abs(exact - numeric) < 1e-6 * max(1, abs(exact)), (exact, numeric)
