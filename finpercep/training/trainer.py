"""Training the reward model: RM_0 (score only), then the full model anchored to it (supplement, section 5.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finpercep.data.identity import scenes_fingerprint
from finpercep.data.triplets import Triplet, Triplets
from finpercep.io.files import write_json
from finpercep.models import RewardModel, load_base
from finpercep.models.norms import freeze_norms
from finpercep.runs.devices import uploaded
from finpercep.runs.ema import MovingAverage
from finpercep.runs.finite import FiniteGuard
from finpercep.runs.interruption import Interruption, ends_of_children_ignored, ignore_interrupts
from finpercep.runs.lock import folder_lock
from finpercep.runs.monitors import Monitor, started
from finpercep.runs.ranks import Ranks, own_device
from finpercep.runs.schedule import cosine
from finpercep.runs.state import check_same_step, check_settings, read_state, write_state
from finpercep.training.build import new_model, parameter_groups
from finpercep.training.config import BEST, RewardTrainConfig, check_folders, comparable, with_younger
from finpercep.training.dev import DevEvaluation
from finpercep.training.losses import total_loss
from finpercep.training.model_files import write_model
from finpercep.training.objective import Objective
from finpercep.training.scenes import training_scenes, with_steps
from finpercep.training.synced_norms import sync_norms

STATE_PARTS = ("step", "model", "optimizer", "schedule", "settings")
SETTLE = 0.8
"""Share of a run after which normalizations keep their statistics: the end of training sees the model that is used."""


class RewardTrainer:
    """Model, optimizer, schedule and data of one run; `step()` makes one update, `save()` / `resume()` are exact."""

    def __init__(self, config: RewardTrainConfig) -> None:
        check_folders(config)
        torch.manual_seed(config.seed)
        self.device = own_device(config.device)
        self.ranks = Ranks(self.device)
        self.part = self.ranks.rows(config.batch)
        self.base = None if config.anchor is None else load_base(config.anchor).to(self.device)
        if self.base is not None and self.base.has_map:
            raise ValueError(f"anchor: expected RM_0, a model without a map, got {config.anchor}")
        self.model = new_model(config, self.base).to(self.device)
        scenes, held_out = training_scenes(config)
        self.config = config = with_steps(config, scenes)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config), betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: cosine(step, config.warmup, config.steps)
        )
        self.triplets = Triplets(scenes, config.triplets, seed=config.seed)
        self.dev = DevEvaluation(config, held_out)
        self.fingerprints = {
            "data_fingerprint": scenes_fingerprint(scenes),
            "anchor_fingerprint": None if self.base is None else self.base.fingerprint,
            "init_fingerprint": None if config.init is None else self.model.fingerprint,
            "preprocessing": self.model.preprocessing,
        }
        if self.ranks.size > 1:
            sync_norms(self.model)
        self.average = MovingAverage(_averaged(self.model), config.ema) if config.ema else None
        self.guard = FiniteGuard(self.device)
        self.objective = Objective(config, self.model, self.base, self.ranks, self.device)
        self.done = 0

    def batches(self) -> Iterator[Triplet]:
        """The triplets of the steps that are still to do; of several processes, this one's part of each.

        Raises:
            ChildProcessError: a process that prepares them has ended.
        """
        size, part = self.config.batch, self.part
        loader = DataLoader(
            self.triplets,
            batch_size=part.stop - part.start,
            sampler=[
                step * size + row
                for step in range(self.done, self.config.steps)
                for row in range(part.start, part.stop)
            ],
            num_workers=self.config.workers,
            persistent_workers=False,
            worker_init_fn=ignore_interrupts,
        )
        batches = iter(loader)
        try:
            for batch in batches:
                with ends_of_children_ignored():  # torch would raise in the middle of a step
                    yield batch
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise ChildProcessError(
                f"workers: expected the {self.config.workers} that prepare triplets to go on, got one that ended, most "
                f"often for want of memory; start again, with fewer, to go on from what is saved in {self.config.out}"
            ) from error
        finally:
            if self.config.workers:  # a traceback would keep them
                batches._shutdown_workers()  # type: ignore[attr-defined]

    def losses(self, batch: Triplet) -> dict[str, Tensor]:
        """The terms of L on one batch."""
        return self.objective.terms(batch, self.done)

    def step(self, batch: Triplet) -> dict[str, Tensor]:
        """One update; returns the losses, () on the device, which the host does not wait for.

        After a loss or a gradient that is not finite, no step changes the weights; `check` says so.
        """
        config = self.config
        if self.done >= SETTLE * config.steps:
            freeze_norms(self.model)
        terms = self.losses(Triplet(*(uploaded(part, self.device) for part in batch)))
        loss = total_loss(terms, config.loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.add([p.grad for p in self.model.parameters() if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.guard.step(self.optimizer, self.done, loss, norm)
        self.schedule.step()
        if self.average is not None:
            self.average.update(self.done)
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
        warmup, steps = self.config.warmup, self.config.steps
        short = f"; the rates rise for {warmup} steps, and the run has {steps}" if warmup >= steps else ""
        return f"{stage}: {parameters / 1e6:.2f} M parameters, {len(self.triplets.scenes)} scenes{short}"

    def evaluate(self) -> dict[str, float]:
        """Figures of the model on held-out scenes; the best model so far is kept in `<out>/best`.

        Raises:
            OSError: see `save`.
        """
        with self._used():
            figures = self.dev.figures(self.model)
            if self.dev.improved(figures):
                best = Path(self.config.out) / BEST
                best.mkdir(parents=True, exist_ok=True)
                write_model(self.model, best)
        return figures

    def _used(self) -> AbstractContextManager[None]:
        """Inside, the model is what is measured and saved."""
        return nullcontext() if self.average is None else self.average.used()

    def finish(self) -> RewardModel:
        """The model as it is saved, its normalizations folded; nothing can be trained after this."""
        if self.average is not None:
            self.average.adopt()
        return self.model.fold_norms()

    def save(self) -> None:
        """Write the model and the state; a kill at any moment leaves the previous or the new one of each, whole.

        Raises:
            FloatingPointError: see `check`.
            OSError: a full disk, no permission; names the file and the size.
        """
        self.check()
        climbers = self.objective.climbers.state()
        if not self.ranks.first:
            return
        out = Path(self.config.out)
        out.mkdir(parents=True, exist_ok=True)
        with self._used():
            write_model(self.model, out)
        state = {
            "step": self.done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "settings": comparable(self.config) | self.fingerprints,
            "best": self.dev.best,
            "climbers": climbers,
            "networks": self.objective.networks.state(),
        }
        if self.average is not None:
            state["average"] = self.average.averages
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
        check_settings(with_younger(state["settings"]), comparable(self.config) | self.fingerprints, folder)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.averages = [tensor.to(self.device) for tensor in state["average"]]
        self.dev.best = state["best"]
        self.objective.climbers.load(state["climbers"], self.device)
        self.objective.networks.load(state.get("networks", []))  # states of before there were any
        self.done = state["step"]
        return True


def train(config: RewardTrainConfig, monitors: Sequence[Monitor] = ()) -> RewardModel:
    """Train to the end, resuming what is in `config.out`.

    Ctrl-C ends it after the step that is being made, and saves that; a second one ends it at once. Under torchrun or
    `accelerate launch` each process takes its share of a step's triplets; the first one evaluates and writes.

    Args:
        config: the run.
        monitors: who is told of it: `runs.progress.Screen`, `runs.trackers.TensorBoard`.

    Returns:
        The trained model, its normalizations folded.

    Raises:
        ValueError: settings, data or models that do not fit, or a state that was made with others.
        OSError: data that are missing, another run in the folder, or no room in it; what was saved stays. A process
            that prepares triplets has ended; the steps that are done are saved.
        FloatingPointError: a loss or a gradient was not finite; what was saved stays.
        KeyboardInterrupt: after Ctrl-C.
    """
    trainer = RewardTrainer(config)
    config, first = trainer.config, trainer.ranks.first
    with folder_lock(config.out) if first else nullcontext():
        resumed = trainer.resume()
        check_same_step(trainer.ranks.gathered(trainer.done), config.out)
        if first and not resumed:  # the settings that the run began with are kept
            settings = asdict(config) | trainer.model.config | trainer.fingerprints
            write_json(Path(config.out) / "train.json", settings)
        lines = [trainer.summary, *([f"resumed at step {trainer.done} from {config.out}"] if resumed else [])]
        told = monitors if first else ()
        with started(told, lines, done=trainer.done, total=config.steps), Interruption() as interruption:
            _loop(trainer, told, interruption)
    return trainer.finish()


def _loop(trainer: RewardTrainer, monitors: Sequence[Monitor], interruption: Interruption) -> None:
    config = trainer.config
    for batch in _batches_or_save(trainer):
        losses = trainer.step(Triplet(*batch))
        last = trainer.done == config.steps
        figures: dict[str, float] = {}
        if trainer.done % config.log_every == 0 or last:
            trainer.check()
            figures = dict(zip(losses, torch.stack([*losses.values()]).tolist(), strict=True))
        if config.evaluate_every and (trainer.done % config.evaluate_every == 0 or last) and trainer.ranks.first:
            figures |= trainer.evaluate()
        if figures:
            for monitor in monitors:
                monitor.log(trainer.done, figures)
        asked = trainer.ranks.agreed(interruption.asked)
        if trainer.done % config.save_every == 0 or last or asked:
            trainer.save()
        if asked:
            raise KeyboardInterrupt


def _batches_or_save(trainer: RewardTrainer) -> Iterator[Triplet]:
    """The batches; where the next one cannot be made, the steps that are done are saved before the error goes on."""
    begun = trainer.done
    try:
        yield from trainer.batches()
    except Exception:
        if trainer.done > begun and trainer.ranks.size == 1:  # others are in a step, and saving takes all of them
            trainer.save()
        raise


def _averaged(model: RewardModel) -> list[Tensor]:
    """What a moving average is of: weights, and the statistics of normalizations."""
    return [tensor for tensor in model.state_dict(keep_vars=True).values() if tensor.is_floating_point()]
