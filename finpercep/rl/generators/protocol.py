"""What every generator is: conditional velocities in flow coordinates, and a way from there to images and back."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import Steps


class Generator(Protocol):
    """A super-resolution model in flow coordinates x = (1-s)·x0 + s·ε, v = ε - x0, an `nn.Module` besides.

    Algorithms and samplers know nothing else of it: any Gaussian model, UNet or transformer, pixels or latents, can be
    one (`finpercep.rl.coordinates` converts predictions). Guidance, where it is used, is part of `velocity`, so that
    what is trained is what is sampled.

    Attributes:
        scale: how many times larger a result is than its low-resolution image.
        channels, stride: x has shape (B, channels, H/stride, W/stride) for results (B,3,H,W).
    """

    scale: int
    channels: int
    stride: int

    def condition(self, batch: Batch) -> Any:
        """What `velocity` needs to know of a batch, made once for all its steps."""

    def velocity(self, x: Tensor, s: Tensor, condition: Any) -> Tensor:
        """v at x (B,C,h,w) and noise levels s (B,)."""

    def reference_velocity(self, x: Tensor, s: Tensor, condition: Any) -> Tensor:
        """The same by the model before any reinforcement learning, without gradient: adapters off, or a frozen copy."""

    def encode(self, photo: Tensor, condition: Any) -> Tensor:
        """x0 of photos (B,3,H,W) in [0, 1]: the pre-training term and given pairs need it."""

    def decode(self, x0: Tensor, condition: Any) -> Tensor:
        """Images (B,3,H,W), float32 in [0, 1], of x0; differentiable."""

    def steps(self, count: int) -> Steps:
        """Noise levels of a sampler with that many steps."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimizer is given."""
