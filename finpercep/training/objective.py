"""The terms of L on the triplets of a step, in one process or in several."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finpercep.data.features.filter_bank import FilterBank
from finpercep.data.randomness import seeded
from finpercep.data.triplets import Triplet
from finpercep.models import CLIPIQA, RewardModel
from finpercep.runs.ranks import Ranks
from finpercep.training.climbing import climb_by, climb_loss, climbed_target, draw_climbs
from finpercep.training.config import RewardTrainConfig
from finpercep.training.losses import align_loss, level_loss, map_losses, order_loss, triplet_targets


class Objective:
    """What a run minimizes.

    A step's images are numbered photos first, then implanted photos, whole results, and climbed images. Of several
    processes each has a part of them, and all of the terms: see `Ranks.joined`.

    Args:
        config: of the run.
        model, base: what is trained, and the loaded anchor.
        ranks: the processes.
        device: of the models.
    """

    def __init__(
        self,
        config: RewardTrainConfig,
        model: RewardModel,
        base: RewardModel | CLIPIQA | None,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.config, self.model, self.base, self.ranks, self.device = config, model, base, ranks, device
        part = ranks.rows(config.batch)
        triplets = torch.arange(part.start, part.stop)
        self.own = torch.cat([triplets + kind * config.batch for kind in range(3)])
        """Numbers of this process's images, ascending."""
        self.bank = FilterBank().to(device)

    def terms(self, batch: Triplet, step: int) -> dict[str, Tensor]:
        """The terms, () each, on this process's triplets of a step."""
        size, weights = self.config.batch, self.config.loss
        images = torch.cat([batch.gt, batch.syn, batch.sr])
        target, _ = triplet_targets(batch.target_syn, batch.target_sr, weights)
        chosen, mine, climbed, climbed_to = self._climb(images, target, step)
        own = self.own.to(self.device)
        join = partial(self.ranks.joined, rows=torch.cat([own, 3 * size + mine]), total=3 * size + len(chosen))
        with self._autocast():
            output = self.model(torch.cat([images, climbed]))
        # A map is small beside the gradients: every process takes the losses of the whole batch.
        score, target = join(output.score), join(torch.cat([target, climbed_to]))
        *scores, after = score.split([size, size, size, len(chosen)])
        _, target_syn, target_sr, _ = target.split([size, size, size, len(chosen)])
        terms = {"rank": order_loss(scores, target_syn, target_sr, weights)}
        if len(chosen):
            terms["climb"] = climb_loss(score[chosen], after)
        if output.map is not None:
            _, weight = triplet_targets(target_syn, target_sr, weights)
            terms |= map_losses(join(output.map.float()), target, torch.cat([weight, weight[chosen]]), weights)
        if self.base is None:
            return terms | {"level": level_loss(score, target)}
        with torch.no_grad(), self._autocast():
            base = self.ranks.joined(self.base(batch.gt).score, own[: len(batch.gt)], size)
        return terms | {"align": align_loss(scores[0], base)}

    def _climb(self, images: Tensor, target: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Climb those of this process's images (N,3,H,W) that are climbed in a step.

        Returns:
            Numbers (K,) of all images of the step that are climbed, whoever has them; which of these K are this
            process's; and those images and their targets after it.
        """
        config = self.config.climb
        draw = seeded(self.config.seed, "climb", step)
        count = round(config.climbed * self.config.batch)
        numbers = torch.randperm(3 * self.config.batch, generator=draw)[:count]
        mine = torch.isin(numbers, self.own).nonzero().flatten()
        climbed, climbed_to = images[:0], target[:0]
        if len(mine):
            rows = torch.searchsorted(self.own, numbers[mine]).to(self.device)
            before = images[rows]
            with self._autocast():
                climbed = climb_by(self.model, before, draw_climbs(config, count, draw)[mine])
            climbed_to = climbed_target(before, climbed, target[rows], self.bank)
        return numbers.to(self.device), mine.to(self.device), climbed, climbed_to

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
