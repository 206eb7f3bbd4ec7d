"""Training the reward model: RM_0 (score only), then the full model anchored to it (supplement, section 5.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finpercep.data.scenes import load_scenes, split_dev
from finpercep.data.scenes_fingerprint import scenes_fingerprint
from finpercep.data.triplets import Triplet, Triplets
from finpercep.io.files import write_json
from finpercep.models import CLIPIQA, RewardModel, load_base
from finpercep.models.norms import freeze_norms
from finpercep.runs.interruption import Interruption, ignore_interrupts
from finpercep.runs.run_folder import STATE, read_state, write_model, write_state
from finpercep.training.config import RewardTrainConfig, check_folders, comparable
from finpercep.training.losses import (
    align_loss,
    entropy_loss,
    level_loss,
    map_loss,
    raise_odds,
    rank_loss,
    total_loss,
)

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
        if isinstance(self.base, RewardModel) and self.base.decoder is not None:
            raise ValueError(f"anchor: expected RM_0, a model without a map, got {config.anchor}")
        self.model = self._new_model().to(self.device).train()
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config), betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: cosine(step, config.warmup, config.steps)
        )
        scenes = load_scenes(config.data, "train", leave_out=config.leave_out)
        scenes, _ = split_dev(scenes, config.dev_every)
        self.triplets = Triplets(scenes, config.triplets, seed=config.seed)
        self.fingerprints = {
            "data_fingerprint": scenes_fingerprint(scenes),
            "anchor_fingerprint": None if self.base is None else self.base.fingerprint,
            "init_fingerprint": None if config.init is None else self.model.fingerprint,
        }
        self.done = 0

    def _new_model(self) -> RewardModel:
        config = self.config
        if config.init is not None:
            model = RewardModel.from_pretrained(config.init, fold=False)
            if config.anchor is None and model.decoder is not None:
                raise ValueError(f"anchor: expected the RM_0 that {config.init} grew from, got none")
            if config.anchor is not None and model.decoder is None:
                raise ValueError(f"init: expected a model with a map, got {config.init}; as anchor alone it gets one")
            return model
        if config.anchor is None:
            return RewardModel(config.encoder, None, config.head)
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
        output = self.model(torch.cat([batch.gt, batch.syn, batch.sr]))
        gt, syn, sr = output.score.split(size)
        rank = rank_loss(gt, syn, sr, margin_sr=weights.margin_sr, margin_syn=weights.margin_syn)
        # The photo and the whole super-resolved image have targets too: nothing, and M_gt everywhere.
        target = torch.cat([torch.zeros_like(batch.target_syn), batch.target_syn, batch.target_sr])
        if self.base is None:
            return {"rank": rank, "level": level_loss(output.score, target)}
        with torch.no_grad():
            base = self.base(batch.gt)
        one = target.new_ones(size, 1, 1, 1)
        weight = torch.cat([one, one, weights.restored * one])
        predicted = raise_odds(output.map, weights.fault_odds)
        return {
            "map": map_loss(predicted, target, weight),
            "entropy": entropy_loss(predicted, target, weight),
            "rank": rank,
            "align": align_loss(gt, base if isinstance(base, Tensor) else base.score),
        }

    def step(self, batch: Triplet) -> dict[str, float]:
        """One update; returns the losses.

        Raises:
            FloatingPointError: the loss or the gradient is not finite; no weight was updated and what is saved stays.
        """
        config = self.config
        if self.done >= SETTLE * config.steps:
            freeze_norms(self.model)
        terms = self.losses(Triplet(*(part.to(self.device) for part in batch)))
        loss = total_loss(terms, config.loss)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss at step {self.done} is {loss.item()}; {config.out} is kept")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"norm of the gradient at step {self.done} is {norm}; {config.out} is kept")
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        return {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}

    def save(self) -> None:
        """Write the model and the state; a kill at any moment leaves the previous or the new one, whole."""
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
        state = read_state(Path(self.config.out))
        if state is None:
            return False
        path, was = Path(self.config.out) / STATE, state["settings"]
        now = comparable(self.config) | self.fingerprints
        changed = [f"{k}={was.get(k)!r} (now {now[k]!r})" for k in sorted(now) if was.get(k) != now[k]]
        if changed:
            raise ValueError(
                f"{path}: made with {', '.join(changed)}; use the same settings, or another folder "
                "(with --init to go on from this model)"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.done = state["step"]
        return True


def train(config: RewardTrainConfig) -> RewardModel:
    """Train to the end, resuming what is in `config.out`; progress on stderr, losses to TensorBoard.

    Ctrl-C ends it after the step that is being made, and saves that; a second one ends it at once.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    trainer = RewardTrainer(config)
    resumed = trainer.resume()
    console = Console(stderr=True)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    stage = "full model" if trainer.base is not None else "RM_0 (score only)"
    console.print(f"{stage}: {parameters / 1e6:.2f} M parameters, {len(trainer.triplets.scenes)} scenes")
    if resumed:
        console.print(f"resumed at step {trainer.done} from {config.out}")
    else:  # the settings that the run began with are kept
        settings = asdict(config) | trainer.model.config | trainer.fingerprints
        write_json(Path(config.out) / "train.json", settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console) as progress,
        _writer(config.out, trainer.done) as writer,
        Interruption() as interruption,
    ):
        task = progress.add_task("training", total=config.steps, completed=trainer.done)
        started, first = time.perf_counter(), trainer.done
        for batch in trainer.batches():
            losses = trainer.step(Triplet(*batch))
            if trainer.done % config.log_every == 0 or trainer.done == config.steps:
                for name, value in losses.items():
                    writer.add_scalar(f"train/{name}", value, trainer.done)
                rate = (trainer.done - first) / (time.perf_counter() - started)
                text = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
                progress.update(task, completed=trainer.done, description=f"{text}  {rate:.2f} steps/s")
                if not console.is_terminal:
                    console.print(f"step {trainer.done}: {text}  {rate:.2f} steps/s", soft_wrap=True)
            if trainer.done % config.save_every == 0 or trainer.done == config.steps or interruption.asked:
                trainer.save()
            if interruption.asked:
                raise KeyboardInterrupt
    return trainer.model.fold_norms()


def parameter_groups(model: RewardModel, config: RewardTrainConfig) -> list[dict[str, Any]]:
    """Two groups, encoder and new parts, each with its rate."""
    encoder = list(model.encoder.parameters())
    ids = {id(p) for p in encoder}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [{"params": encoder, "lr": config.lr_encoder}, {"params": rest, "lr": config.lr_new}]


def cosine(step: int, warmup: int, steps: int) -> float:
    """Factor of the rate: linear over `warmup` steps, then a cosine to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def _writer(out: str, done: int) -> Any:
    """Points of steps after `done`, from a run that was stopped before it saved, are hidden: they come again."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard is not installed; pip install 'finpercep[train]'") from error
    return SummaryWriter(out, purge_step=done + 1)
