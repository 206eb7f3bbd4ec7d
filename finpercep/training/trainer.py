"""Training the reward model: RM_0 (score only), then the full model anchored to it (supplement, section 5.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finpercep.data.features.filter_bank import FilterBank
from finpercep.data.loading import load_scenes
from finpercep.data.randomness import seeded
from finpercep.data.scenes import Scene, split_dev
from finpercep.data.scenes_fingerprint import scenes_fingerprint
from finpercep.data.triplets import Triplet, Triplets
from finpercep.io.files import write_json
from finpercep.models import CLIPIQA, RewardModel, load_base
from finpercep.models.inputs import STORED_PREPROCESSING
from finpercep.models.norms import freeze_norms
from finpercep.runs.finite import FiniteGuard
from finpercep.runs.interruption import Interruption, ignore_interrupts
from finpercep.runs.lock import folder_lock
from finpercep.runs.monitors import Monitor, started
from finpercep.runs.schedule import cosine
from finpercep.runs.state import check_settings, read_state, write_state
from finpercep.training.climbing import climb_images, climb_loss, climbed_target
from finpercep.training.config import RewardTrainConfig, check_folders, comparable
from finpercep.training.losses import (
    align_loss,
    level_loss,
    map_losses,
    order_loss,
    total_loss,
    triplet_targets,
)
from finpercep.training.model_files import write_model

STATE_PARTS = ("step", "model", "optimizer", "schedule", "settings")
SETTLE = 0.8
"""Share of a run after which normalizations keep their statistics: the end of training sees the model that is used."""


class RewardTrainer:
    """Model, optimizer, schedule and data of one run; `step()` makes one update, `save()` / `resume()` are exact."""

    def __init__(self, config: RewardTrainConfig) -> None:
        check_folders(config)
        self.config = config
        torch.manual_seed(config.seed)
        self.device = torch.device(config.device)
        self.base = None if config.anchor is None else load_base(config.anchor).to(self.device)
        if self.base is not None and self.base.has_map:
            raise ValueError(f"anchor: expected RM_0, a model without a map, got {config.anchor}")
        self.model = self._new_model().to(self.device).train()
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config), betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: cosine(step, config.warmup, config.steps)
        )
        scenes = training_scenes(config)
        self.triplets = Triplets(scenes, config.triplets, seed=config.seed)
        self.fingerprints = {
            "data_fingerprint": scenes_fingerprint(scenes),
            "anchor_fingerprint": None if self.base is None else self.base.fingerprint,
            "init_fingerprint": None if config.init is None else self.model.fingerprint,
            "preprocessing": self.model.preprocessing,
        }
        self.guard = FiniteGuard(self.device)
        self.bank = FilterBank().to(self.device)
        self.done = 0

    def _new_model(self) -> RewardModel:
        config = self.config
        if config.init is not None:
            model = RewardModel.from_pretrained(config.init, fold=False)
            if config.anchor is not None and not model.has_map:
                raise ValueError(f"init: expected a model with a map, got {config.init}; as anchor alone it gets one")
            return model
        if config.anchor is None:
            return RewardModel(config.encoder, None, config.head, STORED_PREPROCESSING)
        if isinstance(self.base, CLIPIQA):
            raise ValueError(
                f"init: expected a model with a map, since none grows from a CLIP-IQA ({config.anchor}), got none"
            )
        base = RewardModel.from_pretrained(config.anchor, fold=False)
        return base.expand(config.decoder, config.head)

    def batches(self) -> Iterator[Triplet]:
        """The triplets of the steps that are still to do."""
        first, last = self.done * self.config.batch, self.config.steps * self.config.batch
        yield from DataLoader(
            self.triplets,
            batch_size=self.config.batch,
            sampler=range(first, last),
            num_workers=self.config.workers,
            persistent_workers=False,
            worker_init_fn=ignore_interrupts,
        )

    def losses(self, batch: Triplet) -> dict[str, Tensor]:
        """The terms of L on one batch."""
        size, weights = len(batch.gt), self.config.loss
        images = torch.cat([batch.gt, batch.syn, batch.sr])
        target, weight = triplet_targets(batch.target_syn, batch.target_sr, weights)
        rows, climbed, climbed_to = self._climb(images, target)
        output = self.model(torch.cat([images, climbed]))
        target, weight = torch.cat([target, climbed_to]), torch.cat([weight, weight[rows]])
        *scores, after = output.score.split([size, size, size, len(rows)])
        terms = {"rank": order_loss(scores, batch.target_syn, batch.target_sr, weights)}
        if len(rows):
            terms["climb"] = climb_loss(output.score[rows], after)
        if output.map is not None:
            terms |= map_losses(output.map, target, weight, weights)
        if self.base is None:
            return terms | {"level": level_loss(output.score, target)}
        with torch.no_grad():
            base = self.base(batch.gt)
        return terms | {"align": align_loss(scores[0], base.score)}

    def _climb(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which of the images (N,3,H,W) are climbed in this step: their rows, and images and targets after it."""
        config = self.config.climb
        draw = seeded(self.config.seed, "climb", self.done)
        count = round(config.climbed * self.config.batch)
        rows = torch.randperm(len(images), generator=draw)[:count].to(self.device)
        if not count:
            return rows, images[:0], target[:0]
        before = images[rows]
        after = climb_images(self.model, before, config, draw)
        return rows, after, climbed_target(before, after, target[rows], self.bank)

    def step(self, batch: Triplet) -> dict[str, Tensor]:
        """One update; returns the losses, () on the device, which the host does not wait for.

        After a loss or a gradient that is not finite, no step changes the weights; `check` says so.
        """
        config = self.config
        if self.done >= SETTLE * config.steps:
            freeze_norms(self.model)
        terms = self.losses(Triplet(*(part.to(self.device) for part in batch)))
        loss = total_loss(terms, config.loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.guard.step(self.optimizer, self.done, loss, norm)
        self.schedule.step()
        self.done += 1
        return {name: term.detach() for name, term in {"loss": loss, **terms}.items()}

    def check(self) -> None:
        """Wait for the device and see whether all is well.

        Raises:
            FloatingPointError: a loss or a gradient was not finite; no weight was updated since and what is saved
                stays.
        """
        try:
            self.guard.check()
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self.config.out} is kept") from None

    @property
    def summary(self) -> str:
        """What is trained, in a line."""
        parameters = sum(p.numel() for p in self.model.parameters())
        stage = "full model" if self.model.has_map else "RM_0 (score only)"
        return f"{stage}: {parameters / 1e6:.2f} M parameters, {len(self.triplets.scenes)} scenes"

    def save(self) -> None:
        """Write the model and the state; a kill at any moment leaves the previous or the new one of each, whole.

        Raises:
            FloatingPointError: see `check`.
            OSError: a full disk, no permission; names the file and the size.
        """
        self.check()
        out = Path(self.config.out)
        out.mkdir(parents=True, exist_ok=True)
        write_model(self.model, out)
        state = {
            "step": self.done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "settings": comparable(self.config) | self.fingerprints,
        }
        write_state(state, out)

    def resume(self) -> bool:
        """Go on from `state.pt`, if there is one; the run then is the run that was never stopped.

        Raises:
            ValueError: it cannot be read, or was made with other settings, scenes, anchor or init; names what differs.
        """
        folder = Path(self.config.out)
        state = read_state(folder, STATE_PARTS)
        if state is None:
            return False
        check_settings(state["settings"], comparable(self.config) | self.fingerprints, folder)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.done = state["step"]
        return True


def train(config: RewardTrainConfig, monitors: Sequence[Monitor] = ()) -> RewardModel:
    """Train to the end, resuming what is in `config.out`.

    Ctrl-C ends it after the step that is being made, and saves that; a second one ends it at once.

    Args:
        config: the run.
        monitors: who is told of it: `runs.progress.Screen`, `runs.trackers.TensorBoard`.

    Returns:
        The trained model, its normalizations folded.

    Raises:
        ValueError: settings, data or models that do not fit, or a state that was made with others.
        OSError: data that are missing, another run in the folder, or no room in it; what was saved stays.
        FloatingPointError: a loss or a gradient was not finite; what was saved stays.
        KeyboardInterrupt: after Ctrl-C.
    """
    trainer = RewardTrainer(config)
    with folder_lock(config.out):
        resumed = trainer.resume()
        if not resumed:  # the settings that the run began with are kept
            settings = asdict(config) | trainer.model.config | trainer.fingerprints
            write_json(Path(config.out) / "train.json", settings)
        lines = [trainer.summary, *([f"resumed at step {trainer.done} from {config.out}"] if resumed else [])]
        with started(monitors, lines, done=trainer.done, total=config.steps), Interruption() as interruption:
            _loop(trainer, monitors, interruption)
    return trainer.model.fold_norms()


def _loop(trainer: RewardTrainer, monitors: Sequence[Monitor], interruption: Interruption) -> None:
    config = trainer.config
    for batch in trainer.batches():
        losses = trainer.step(Triplet(*batch))
        last = trainer.done == config.steps
        if trainer.done % config.log_every == 0 or last:
            trainer.check()
            figures = dict(zip(losses, torch.stack([*losses.values()]).tolist(), strict=True))
            for monitor in monitors:
                monitor.log(trainer.done, figures)
        if trainer.done % config.save_every == 0 or last or interruption.asked:
            trainer.save()
        if interruption.asked:
            raise KeyboardInterrupt


def training_scenes(config: RewardTrainConfig) -> list[Scene]:
    """The scenes of all folders that are trained on, without those held out.

    Raises:
        ValueError: a source to leave out that none of the folders has; and see `load_scenes`.
    """
    known = {folder: _sources(load_scenes(folder, "train")) for folder in config.folders}
    unknown = set(config.leave_out).difference(*known.values())
    if unknown:
        every = sorted(set().union(*known.values()))
        raise ValueError(f"leave_out: expected some of the sources {every}, got {sorted(unknown)}")
    scenes = []
    for folder, sources in known.items():
        found = load_scenes(folder, "train", leave_out=[name for name in config.leave_out if name in sources])
        scenes += split_dev(found, config.dev_every)[0]
    return scenes


def _sources(scenes: Sequence[Scene]) -> set[str]:
    return {source for scene in scenes for source in scene.sources}


def parameter_groups(model: RewardModel, config: RewardTrainConfig) -> list[dict[str, Any]]:
    """Two groups, encoder and new parts, each with its rate."""
    encoder = list(model.encoder.parameters())
    ids = {id(p) for p in encoder}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [{"params": encoder, "lr": config.lr_encoder}, {"params": rest, "lr": config.lr_new}]
