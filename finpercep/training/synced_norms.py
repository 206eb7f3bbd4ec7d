"""Batch normalization whose batch is that of all processes, on any device (torch's own SyncBatchNorm needs a GPU)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finpercep.runs.ranks import together


def sync_norms(module: nn.Module) -> None:
    """Let the normalizations of a module take the mean and variance of what all processes give them, in training."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.__class__ = SyncedNorm


class SyncedNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the images of all processes, each of which may have another number of them."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        values = x.float()
        count = values.new_full((values.shape[1],), values[:, 0].numel())
        sums, counts = _Sum.apply(torch.stack([values.sum((0, 2, 3)), count]))
        centered = values - (sums / counts)[:, None, None]
        # Around the mean, in a second exchange: a difference of squares would lose what float32 has.
        variance = _Sum.apply(centered.square().sum((0, 2, 3))) / counts
        with torch.no_grad():
            self.running_mean.lerp_(sums / counts, self.momentum)
            self.running_var.lerp_(variance * (counts / (counts - 1)), self.momentum)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the processes; so is its gradient."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(x: Tensor) -> Tensor:
    total = x.clone()
    with together():
        dist.all_reduce(total)
    return total
