"""The terms of L on the triplets of a step, in one process or in several."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finpercep.data.features.kinds import open_features
from finpercep.data.randomness import seeded
from finpercep.data.triplets import Triplet
from finpercep.models import CLIPIQA, RewardModel
from finpercep.runs.ranks import Ranks
from finpercep.training.climbers import Climbed, Climbers
from finpercep.training.climbing import climbed_target
from finpercep.training.climbing_networks import ClimbingNetworks
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
        self.own = torch.cat([triplets + kind * config.batch for kind in range(3)]).to(device)
        """Numbers of this process's images, ascending."""
        self.climbers = Climbers(config.climb, config.batch, ranks)
        self.networks = ClimbingNetworks(config.climb, config.batch, ranks, device)
        self.bank = open_features(config.triplets.features, device=str(device))

    def terms(self, batch: Triplet, step: int) -> dict[str, Tensor]:
        """The terms, () each, on this process's triplets of a step."""
        size, weights = self.config.batch, self.config.loss
        images = torch.cat([batch.gt, batch.syn, batch.sr])
        target, weight = triplet_targets(batch.target_syn, batch.target_sr, weights)
        climbed = self._climb(images, target, weight, batch.aligned, step)
        own, count = self.own, self.climbers.count + self.networks.count
        join = partial(self.ranks.joined, rows=torch.cat([own, 3 * size + climbed.rows]), total=3 * size + count)
        with self._autocast():
            output = self.model(torch.cat([images, climbed.after]))
        # A map is small beside the gradients: every process takes the losses of the whole batch.
        target = torch.cat([target, self._target_after(climbed)])
        score, target = join(output.score), join(target)
        *scores, after = score.split([size, size, size, count])
        _, target_syn, target_sr, climbed_to = target.split([size, size, size, count])
        terms = {"rank": order_loss(scores, target_syn, target_sr, weights)}
        if count:
            terms["climb"] = level_loss(after, climbed_to)
        if output.map is not None:
            weight = join(torch.cat([weight, climbed.weight]))
            terms |= map_losses(join(output.map.float()), target, weight, weights)
        if self.base is None:
            return terms | {"level": level_loss(score[: 3 * size], target[: 3 * size])}
        with torch.no_grad(), self._autocast():
            base = self.ranks.joined(self.base(batch.gt).score, own[: len(batch.gt)], size)
        return terms | {"align": align_loss(scores[0], base)}

    def _climb(self, images: Tensor, target: Tensor, weight: Tensor, aligned: Tensor, step: int) -> Climbed:
        seed = self.config.seed
        with self._autocast():
            pixels = self.climbers.climb(self.model, images, target, weight, seeded(seed, "climb", step))
            draw = seeded(seed, "climbing networks", step)
            networks = self.networks.climb(self.model, images, target, weight, aligned, draw)
        networks = networks._replace(rows=networks.rows + self.climbers.count)
        return Climbed(*(torch.cat(pair) for pair in zip(pixels, networks, strict=True)))

    def _target_after(self, climbed: Climbed) -> Tensor:
        if not len(climbed.rows):
            return climbed.target
        asked = self.config.triplets
        return climbed_target(
            climbed.before,
            climbed.after,
            climbed.target,
            self.bank,
            alpha=asked.target_alpha,
            scale=asked.target_scale,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
