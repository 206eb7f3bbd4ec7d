"""Images on their way up the score over many training steps: long climbs for the price of short ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from finpercep.data.randomness import integer
from finpercep.models import RewardModel
from finpercep.models.inputs import as_stored
from finpercep.runs.devices import uploaded
from finpercep.runs.ranks import Ranks
from finpercep.training.climbing import ClimbConfig, climb_by, draw_climbs, share_of_batch

__all__ = ["Climbed", "Climbers"]

POOL = 4
"""Climbers that are on their way, for each one that moves in a step."""


class Climbed(NamedTuple):
    """What has climbed in a step; of several processes, this one's part.

    `rows` (K,): which of the step's climbs; `before` (K,3,H,W): the images at the foot, of networks mostly the photos;
    `after` (K,3,H,W): what has become of them, as a file holds it; `target`, `weight`: M_gt (K,1,H,W) of `before` and
    its weight (K,1,1,1).
    """

    rows: Tensor
    before: Tensor
    after: Tensor
    target: Tensor
    weight: Tensor

    @classmethod
    def nothing(cls, images: Tensor, target: Tensor, weight: Tensor) -> Climbed:
        """No climb at all: each part is empty, of the types and sizes of a step's."""
        rows = torch.zeros(0, dtype=torch.long, device=images.device)
        return cls(rows, images[:0], images[:0], target[:0], weight[:0])


class Climbers:
    """A pool of images that climb.

    A climb takes as many passes as it has steps, and what a few steps win is not what a climber wins who has time. So
    each training step moves some climbers by a few steps, up the score of the model as it has become, and starts new
    ones in place of those that have climbed for long enough.

    Args:
        config: how they climb.
        batch: triplets in a step, of all processes.
        ranks: the processes; a climber comes from the triplets of the process that has it.
    """

    def __init__(self, config: ClimbConfig, batch: int, ranks: Ranks) -> None:
        self.config, self.batch, self.ranks = config, batch, ranks
        self.count = share_of_batch("climbed", config.climbed, batch)
        self.size = POOL * self.count
        part = ranks.rows(batch)
        triplets = torch.arange(self.size) * batch // max(1, self.size)
        self.slots = ((triplets >= part.start) & (triplets < part.stop)).nonzero().flatten()
        self.triplet = triplets[self.slots] - part.start
        """Of each own climber: where in the process's batch new ones come from."""
        self.pool: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # before, after, target, weight; own slots

    def climb(
        self, model: RewardModel, images: Tensor, target: Tensor, weight: Tensor, draw: torch.Generator
    ) -> Climbed:
        """Move `count` climbers on.

        Args:
            model: whose score they climb.
            images: (3N,3,H,W): this process's photos, implanted photos and whole results.
            target, weight: their M_gt (3N,1,H,W) and its weights (3N,1,1,1).
            draw: the step's random numbers, the same in all processes.
        """
        if not self.count:
            return Climbed.nothing(images, target, weight)
        everyone = torch.randperm(self.size, generator=draw)[: self.count]
        fresh = torch.rand(self.count, generator=draw) * self.config.climb_rounds < 1
        kinds = torch.tensor([integer(0, 2, draw) for _ in range(self.count)], dtype=torch.long)
        climbs = draw_climbs(self.config, self.count, draw)
        rows = torch.isin(everyone, self.slots).nonzero().flatten()
        own = torch.searchsorted(self.slots, everyone[rows])
        if self.pool is None:
            first = self.triplet + len(images) // 3 * (self.slots % 3)
            self.pool = self._from(images, target, weight, uploaded(first, images.device))
        else:
            starts = fresh[rows]
            new = self.triplet[own[starts]] + len(images) // 3 * kinds[rows[starts]]
            given = self._from(images, target, weight, uploaded(new, images.device))
            places = uploaded(own[starts], images.device)
            for kept, started in zip(self.pool, given, strict=True):
                kept[places] = started
        mine = uploaded(own, images.device)
        before, after, there, share = (part[mine] for part in self.pool)
        if len(rows):
            after = climb_by(model, after, climbs[rows])
            self.pool[1][mine] = after
        return Climbed(uploaded(rows, images.device), before, as_stored(after), there, share)

    @staticmethod
    def _from(images: Tensor, target: Tensor, weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return images[rows], images[rows], target[rows], weight[rows]  # indexed by numbers: two copies

    def state(self) -> list[Tensor]:
        """The whole pool, that of all processes, to be saved; nothing before the first step. All must call it."""
        if self.pool is None:
            return []
        return [self.ranks.joined(part, self.slots.to(part.device), self.size) for part in self.pool]

    def load(self, state: list[Tensor], device: torch.device) -> None:
        """Go on with a pool that `state` gave."""
        if state:
            before, after, target, weight = (part[self.slots].to(device) for part in state)
            self.pool = before, after, target, weight
