"""What is measured of a generator on a run's held-out photos: figures, pictures, and the climb test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from finpercep.evaluation.climb import Climb
from finpercep.io.pictures import save_image
from finpercep.rewards import Reward
from finpercep.rl.climbs import climb_results
from finpercep.rl.generators import Generator
from finpercep.rl.held_out import HeldOut
from finpercep.rl.measures import Measure
from finpercep.rl.pictures import comparison

SHOWN = slice(0, 6)
"""Held-out photos on a picture."""


class Measurement:
    """Measures a generator, always from the same noise, and compares it with what it was at first.

    Args:
        held_out: the photos.
        generator: before it is trained.
        judge: a reward that is not climbed; None is none.
        measures: further ones, by name.
        device: where generator and rewards are.
        pictures: the folder that they are written to.

    Attributes:
        before: what the untrained generator makes, (B,3,H,W), on the CPU.

    Raises:
        ValueError: results of another size than the photos.
    """

    def __init__(
        self,
        held_out: HeldOut,
        generator: Generator,
        judge: Reward | None,
        measures: Mapping[str, Measure],
        device: torch.device,
        pictures: Path,
    ) -> None:
        self.held_out, self.judge, self.measures = held_out, judge, measures
        self.device, self.pictures = device, pictures
        self.photo = held_out.photo
        self.before = held_out.images(generator, device)
        if self.before.shape != self.photo.shape:
            raise ValueError(f"generator: expected results {tuple(self.photo.shape)}, got {tuple(self.before.shape)}")

    def figures(self, generator: Generator, reward: Reward, picture: int | None) -> dict[str, Tensor]:
        """Figures (B,), photo by photo, see `HeldOut.measure` and `HeldOut.velocities`.

        Args:
            generator: as it is now.
            reward: the stage's, which is climbed.
            picture: the step whose picture is written; None writes none.
        """
        images = self.held_out.images(generator, self.device)
        values = self.held_out.measure(images, reward, self.device, self.judge, self.measures)
        values |= self.held_out.velocities(generator, self.device)
        if picture is not None:
            self._draw(images, reward, picture)
        return values

    def climb(self, generator: Generator, reward: Reward, count: int) -> list[Climb]:
        """The climb test of a reward on the first `count` results."""
        images = self.held_out.images(generator, self.device)[:count]
        return climb_results(reward, images, self.photo[:count], self.held_out.aligned[:count], self.device)

    def _draw(self, images: Tensor, reward: Reward, step: int) -> None:
        """A picture of some photos, before, now, and where the reward sees faults."""
        batch = self.held_out.batch[SHOWN].to(self.device)
        before, now = (results[SHOWN].to(self.device) for results in (self.before, images))
        save_image(comparison(batch, before, now, reward), self.pictures / f"step-{step:06d}.png")
