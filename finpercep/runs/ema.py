"""The moving average of what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """Averages of parameters; the share that an update leaves is min(decay, (1 + t)/(10 + t)), as in flow_grpo.

    Args:
        parameters: what is averaged: floating-point tensors, buffers too.
        decay: the largest share that is left, in [0, 1); 0 follows the parameters.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    def update(self, step: int) -> None:
        """Take the parameters after a step, counted from 0."""
        self.follow((1 + step) / (10 + step))

    @torch.no_grad()
    def follow(self, left: float) -> None:
        """Take the parameters, and leave that share of the averages, but at most `decay`."""
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.detach(), 1 - min(self.decay, left))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the parameters are the averages."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self._set(self.averages)
        try:
            yield
        finally:
            self._set(own)

    def adopt(self) -> None:
        """Make the parameters the averages, for good."""
        self._set(self.averages)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
