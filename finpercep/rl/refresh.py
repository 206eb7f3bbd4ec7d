"""Co-evolution: the reward model learns the generator's own present failures (supplement, section 5.2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finpercep.data.features.filter_bank import FilterBank
from finpercep.data.masks.simple import random_blobs, random_boxes
from finpercep.data.randomness import chance, choose, seed_of, seeded
from finpercep.data.sources.synthetic import SYNTHETIC_SOURCES, synthetic_source
from finpercep.data.swap import region_swap
from finpercep.data.targets import fault_target
from finpercep.models import RewardModel
from finpercep.models.encoders import unfreeze
from finpercep.rl.checks import above_zero, at_least_one, finite, not_negative, share
from finpercep.rl.generators import Generator
from finpercep.rl.photos import Crops
from finpercep.rl.rollout import results
from finpercep.rl.scores import as_file
from finpercep.training.losses import (
    LossWeights,
    align_loss,
    map_losses,
    order_loss,
    total_loss,
    triplet_targets,
)
from finpercep.training.model_files import write_model

REFRESHED = "refreshed"
"""Folder of the reward models as they were refreshed, each under the number of its stage."""


@dataclass(frozen=True)
class RefreshConfig:
    """When and how the reward model is refreshed.

    Attributes:
        every: steps between refreshes; 0 is never.
        steps: updates of the reward model in one, by an AdamW of its own.
        batch: photos in each update.
        lr: learning rate of the reward model.
        synthetic: share of photos whose fault is a built-in one instead of the generator's, so that the model keeps
            what it knew.
        first_stage: stages before it, counted from 0, keep their reward as it is: by default stage 0 does, as the paper
            freezes RM_0. A run of one stage refreshes that one.

    Raises:
        ValueError: an option out of its range.
    """

    every: int = 0
    steps: int = 20
    batch: int = 8
    lr: float = 1e-4
    synthetic: float = 0.5
    first_stage: int = 1

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every: expected 0 (never) or more, got {self.every}")
        at_least_one(self, "steps", "batch")
        above_zero(self, "lr")
        finite(self, "lr")
        share(self, "synthetic")
        not_negative(self, "first_stage")


@dataclass(frozen=True)
class Faults:
    """Photos, results of them, and photos with parts of those put in (B,3,H,W), with M_gt of both (B,1,H,W)."""

    photo: Tensor
    result: Tensor
    syn: Tensor
    target_result: Tensor
    target_syn: Tensor

    def to(self, device: torch.device) -> Faults:
        return Faults(*(tensor.to(device) for tensor in vars(self).values()))


def implant(photo: Tensor, result: Tensor, aligned: Tensor, bank: FilterBank, *names: object) -> Faults:
    """Put a random region of each result into its photo.

    Args:
        photo, result: (B,3,H,W), float in [0, 1].
        aligned: (B,) bool, see `Batch`.
        bank: features of M_gt.
        names: what the regions are a function of.
    """
    height, width = photo.shape[-2:]
    masks = []
    for row in range(len(photo)):
        draw = seeded(0, "refresh", *names, row)
        if chance(0.6, draw):
            masks.append(random_boxes(height, width, draw, side=(0.12, 0.75)))
        else:
            masks.append(random_blobs(height, width, draw, area=(0.03, 0.6)))
    syn = region_swap(photo, result, torch.stack(masks).bool())
    targets = (fault_target(photo, made, bank, aligned=aligned) for made in (result, syn))
    return Faults(photo, result, syn, *targets)


class Refresh:
    """Refreshes reward models; each keeps the level of its scores of photos, which L_align holds to its first version.

    Args:
        config: when and how.
        models: rewards by name, as `load_reward` gave them, of the stages from `first_stage` on; those that are no
            `RewardModel` stay as they are.
        crops: photos to learn on.
        fixed: held-out photos, what the generator made of them at first (B,3,H,W), on which changes are measured, and
            which of them are aligned (B,).
        sampler_steps: of the generator.
        seed: of what is random.

    Raises:
        ValueError: no reward is a `RewardModel`, or there are no photos.
    """

    def __init__(
        self,
        config: RefreshConfig,
        models: dict[str, Any],
        crops: Crops,
        fixed: tuple[Tensor, Tensor, Tensor],
        sampler_steps: int,
        seed: int,
    ) -> None:
        self.models = {name: model for name, model in models.items() if isinstance(model, RewardModel)}
        if not self.models:
            found = ", ".join(f"{type(model).__name__} ({name})" for name, model in models.items())
            raise ValueError(f"refresh: expected a RewardModel to refresh, got {found}; see refresh.first_stage")
        if not crops.photos:
            raise ValueError("refresh: expected photos beside low-resolution images, got none")
        self.config, self.sampler_steps, self.seed = config, sampler_steps, seed
        self.anchors = {name: copy.deepcopy(model) for name, model in self.models.items()}
        self.versions = dict.fromkeys(self.models, 0)
        pairs = [pair for pair in crops.pairs if pair.has_photo]
        self.crops = Crops(
            pairs,
            crops.side,
            scale=crops.scale,
            degraded=crops.degraded,
            degradation=crops.degradation,
            seed=seed_of(seed, "refresh") % 2**31,
        )
        self.bank = FilterBank()
        self.fixed = implant(*fixed, self.bank, "fixed")

    def due(self, done: int) -> bool:
        """Whether the reward is refreshed after `done` steps."""
        return self.config.every > 0 and done > 0 and done % self.config.every == 0

    def run(self, name: str, generator: Generator, device: torch.device) -> dict[str, float]:
        """Refresh the model of that name on what the generator makes now.

        Returns:
            What it changed on the fixed set: each figure before and after.
        """
        model, config, version = self.models[name], self.config, self.versions[name]
        before = self.measure(model, device)
        model.requires_grad_(True)
        unfreeze(model.encoder)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=config.lr, weight_decay=1e-4)
        for step in range(config.steps):
            faults = self._faults(generator, device, version * config.steps + step)
            loss = total_loss(self._losses(model, self.anchors[name], faults), LossWeights())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # as much memory as the weights
        model.requires_grad_(False)
        self.versions[name] += 1
        after = self.measure(model, device)
        changes = {f"refresh/{key}_before": value for key, value in before.items()}
        return changes | {f"refresh/{key}": value for key, value in after.items()}

    @torch.no_grad()
    def measure(self, model: RewardModel, device: torch.device) -> dict[str, float]:
        """On the fixed set, of a model: all in [0, 1].

        Returns:
            Mean scores of "photo" and "result"; "photo_above_fault" and "fault_above_result", the shares in the right
            order; and "map_error", the mean |M - M_gt| on photos with faults, where the model has a map.
        """
        fixed = self.fixed.to(device)
        photo, syn, result = (model(images) for images in (fixed.photo, fixed.syn, fixed.result))
        figures = {
            "photo": photo.score.mean(),
            "result": result.score.mean(),
            "photo_above_fault": (photo.score > syn.score).float().mean(),
            "fault_above_result": (syn.score > result.score).float().mean(),
        }
        if syn.map is not None:
            figures["map_error"] = (syn.map - fixed.target_syn).abs().mean()
        return {name: float(value) for name, value in figures.items()}

    def state(self) -> dict[str, Any]:
        """Versions, and the weights of the models that have been refreshed."""
        weights = {name: model.state_dict() for name, model in self.models.items() if self.versions[name]}
        return {"versions": dict(self.versions), "weights": weights}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was."""
        self.versions = dict(state["versions"])
        for name, weights in state["weights"].items():
            self.models[name].load_state_dict(weights)

    def save(self, folder: Path, stages: Mapping[int, str]) -> None:
        """Write `<folder>/<stage>`, which `load_reward` loads, for each stage -> name of its model.

        Raises:
            OSError: a full disk, no permission; names the file.
        """
        for number, name in stages.items():
            (folder / str(number)).mkdir(parents=True)
            write_model(self.models[name], folder / str(number))

    @torch.no_grad()
    def _faults(self, generator: Generator, device: torch.device, number: int) -> Faults:
        batch = self.crops.batch(number, self.config.batch)
        made = as_file(results(generator, batch.to(device), self.sampler_steps, self.seed, "refresh", number)).cpu()
        assert batch.photo is not None
        aligned = torch.ones(len(batch), dtype=torch.bool) if batch.aligned is None else batch.aligned.clone()
        for row, photo in enumerate(batch.photo):
            draw = seeded(self.seed, "refresh", number, row)
            if chance(self.config.synthetic, draw):
                made[row] = synthetic_source(choose(list(SYNTHETIC_SOURCES), draw), photo, draw)
                aligned[row] = True
        return implant(batch.photo, made, aligned, self.bank, self.seed, number).to(device)

    def _losses(self, model: RewardModel, anchor: RewardModel, faults: Faults) -> dict[str, Tensor]:
        weights = LossWeights()
        output = model(torch.cat([faults.photo, faults.syn, faults.result]))
        scores = output.score.chunk(3)
        with torch.no_grad():
            level = anchor(faults.photo).score
        terms = {
            "rank": order_loss(scores, faults.target_syn, faults.target_result, weights),
            "align": align_loss(scores[0], level),
        }
        if output.map is None:
            return terms
        target, weight = triplet_targets(faults.target_syn, faults.target_result, weights)
        return terms | map_losses(output.map, target, weight, weights)
