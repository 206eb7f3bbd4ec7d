"""One loop for every algorithm: collect, learn, log, save."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from finpercep.io.files import atomic_write, write_json
from finpercep.io.pictures import save_image
from finpercep.rl.clock import Clock, timed
from finpercep.rl.config import RLConfig, build_algorithm, build_curriculum, comparable
from finpercep.rl.curriculum import Moment
from finpercep.rl.experience import Experience
from finpercep.rl.generators import GeneratorModule, load_generator
from finpercep.rl.held_out import HeldOut
from finpercep.rl.photos import Crops, Pair, load_pairs
from finpercep.rl.pictures import comparison
from finpercep.runs.finite import FiniteGuard
from finpercep.runs.interruption import Interruption
from finpercep.runs.lock import folder_lock
from finpercep.runs.monitors import Monitor, started
from finpercep.runs.schedule import cosine
from finpercep.runs.state import check_settings, read_state, write_state

STATE_PARTS = ("step", "generator", "optimizer", "random", "settings")
METRICS = "metrics.jsonl"


class RLTrainer:
    """Generator, reward, algorithm and data of one run; `step()` makes one step, `save()` / `resume()` are exact.

    Everything random is a function of the seed and the step, but for what modules draw themselves (dropout), whose
    generator is part of the state.
    """

    def __init__(self, config: RLConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(config.device)
        self.generator = load_generator(config.generator, config.generator_options, device=config.device)
        self.generator.keep_reference()
        self.curriculum = build_curriculum(config)
        self.algorithm = build_algorithm(config, self.generator)
        self.optimizer = torch.optim.AdamW(
            self.generator.trainable_parameters(), lr=0.0, weight_decay=config.weight_decay
        )
        fit, held = _photos(config, self.generator.scale)
        self.crops = Crops(fit, config.side, degraded=config.degraded, seed=config.seed)
        self.held_out = HeldOut(held, config.side, self.generator.scale, config.eval_steps)
        self.before = self.held_out.images(self.generator, self.device)
        self.settings = comparable(config) | {
            "generator_fingerprint": self.generator.fingerprint,
            "reward_fingerprints": list(self.curriculum.fingerprints),
        }
        self.guard, self.clock = FiniteGuard(self.device), Clock(self.device)
        self.done = 0

    @property
    def moment(self) -> Moment:
        """Where in the curriculum the next step lies."""
        return self.curriculum.at(self.done)

    def step(self) -> dict[str, float]:
        """Collect, and update the weights `updates` times; returns the figures of the step.

        Raises:
            FloatingPointError: a reward, a loss or a gradient is not finite.
            ValueError, RuntimeError: see the algorithms.
        """
        with self.clock.running():
            figures = self._step()
        return figures

    def times(self) -> dict[str, float]:
        """Images per second of the last step, and the shares of its time. They are no part of the log, which is exact.

        The reward's backward pass, which ReFL has, counts as update.
        """
        seconds = self.clock.seconds()
        total = sum(seconds.values())
        shares = {f"time/{name}": seconds.get(name, 0.0) / total for name in ("rollout", "reward", "update")}
        return {"time/images_per_second": self.images / total, **shares}

    def _step(self) -> dict[str, float]:
        config, moment = self.config, self.moment
        rate = moment.stage.lr * cosine(moment.step, 0, moment.stage.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.generator.prepare(self.crops.batch(self.done, config.batch).to(self.device))
        with timed("rollout"):
            experience = self.algorithm.collect(batch, moment.stage.reward, self.done)
        self.images = len(batch) * getattr(config.algorithm, "group_size", 1)
        parts = list(experience.parts(config.algorithm.micro_batch))
        terms: dict[str, Tensor] = {}
        with timed("update"):
            for number, share in enumerate(_shares(parts, config.updates)):
                for name, value in self._update(share, fresh=number == 0).items():
                    terms[name] = terms.get(name, 0) + value * sum(map(len, share)) / len(experience)
            self.guard.check()
        self.done += 1
        figures = {name: float(value) for name, value in {**experience.figures, **terms}.items()}
        return {"stage": moment.number, "lr": rate, **figures}

    def _update(self, parts: Sequence[Experience], *, fresh: bool) -> dict[str, Tensor]:
        """One update by the mean over the rows of `parts`; returns the means of their terms."""
        rows = sum(map(len, parts))
        terms: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            found = self.algorithm.loss(replace(part, fresh=fresh))
            (found["loss"] * (len(part) / rows)).backward()
            for name, value in found.items():
                terms[name] = terms.get(name, 0) + value.detach() * (len(part) / rows)
        norm = nn.utils.clip_grad_norm_(self.generator.trainable_parameters(), self.config.max_norm)
        self.guard.step(self.optimizer, self.done, terms["loss"], norm)
        return {**terms, "grad_norm": norm}

    def evaluate(self) -> dict[str, float]:
        """Held-out figures by the reward of the last step's stage, and a picture in `<out>/pictures`."""
        stage = self.curriculum.at(max(self.done - 1, 0)).stage
        images = self.held_out.images(self.generator, self.device)
        rows = slice(0, 6)
        sheet = comparison(
            self.held_out.batch[rows].to(self.device),
            self.before[rows].to(self.device),
            images[rows].to(self.device),
            stage.reward,
        )
        save_image(sheet, Path(self.config.out) / "pictures" / f"step-{self.done:06d}.png")
        return self.held_out.measure(images, stage.reward, self.device)

    def save(self) -> None:
        """Write generator and state; a kill at any moment leaves the previous or the new state whole.

        Raises:
            OSError: a full disk, no permission; names the file.
        """
        out = Path(self.config.out)
        self.generator.save_pretrained(out / "generator")
        state = {
            "step": self.done,
            "generator": self.generator.trained_state(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "settings": self.settings,
        }
        write_state(state, out)

    def resume(self) -> bool:
        """Go on from the state in the run's folder, if there is one; the run then is the run that was never stopped.

        Raises:
            ValueError: it cannot be read, or was made with other settings, another generator or other rewards.
        """
        out = Path(self.config.out)
        state = read_state(out, STATE_PARTS)
        if state is None:
            return False
        check_settings(state["settings"], self.settings, out)
        self.generator.load_trained_state(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.done = state["step"]
        _cut_metrics(out / METRICS, self.done)
        return True


def train(config: RLConfig, monitors: Sequence[Monitor] = ()) -> GeneratorModule:
    """Train to the end of the curriculum, resuming what is in `config.out`.

    Ctrl-C ends it after the step that is being made, and saves that. Each step adds a line to metrics.jsonl, with the
    stage and the fingerprint of its reward.

    Args:
        config: the run.
        monitors: who is told of it: `runs.progress.Screen`, `runs.trackers.TensorBoard`.

    Returns:
        The trained generator.

    Raises:
        ValueError: settings, data or models that do not fit, or a state that was made with others.
        OSError: data that are missing, another run in the folder, or no room in it; what was saved stays.
        FloatingPointError: a reward, a loss or a gradient was not finite; what was saved stays.
        KeyboardInterrupt: after Ctrl-C.
    """
    trainer, out = RLTrainer(config), Path(config.out)
    with folder_lock(out):
        resumed = trainer.resume()
        if not resumed:
            write_json(out / "rl.json", {**asdict(config), **trainer.settings})
            _log(trainer, {"stage": 0, **trainer.evaluate()})
        stages = ", ".join(trainer.curriculum.fingerprints)
        lines = [f"{type(trainer.algorithm).__name__} against {stages}"]
        lines += [f"resumed at step {trainer.done} from {out}"] if resumed else []
        with started(monitors, lines, done=trainer.done, total=trainer.curriculum.steps), Interruption() as asked:
            while trainer.done < trainer.curriculum.steps:
                _step(trainer, monitors, asked)
    return trainer.generator


def _step(trainer: RLTrainer, monitors: Sequence[Monitor], interruption: Interruption) -> None:
    config, last = trainer.config, trainer.done + 1 == trainer.curriculum.steps
    figures = trainer.step()
    if trainer.done % config.eval_every == 0 or last:
        figures |= trainer.evaluate()
    _log(trainer, figures)
    for monitor in monitors:
        monitor.log(trainer.done, {**figures, **trainer.times()})
    if trainer.done % config.save_every == 0 or last or interruption.asked:
        trainer.save()
    if interruption.asked:
        raise KeyboardInterrupt


def _log(trainer: RLTrainer, figures: dict[str, float]) -> None:
    stage = int(figures["stage"])
    line = {"step": trainer.done, **figures, "stage": stage, "reward": trainer.curriculum.fingerprints[stage]}
    with open(Path(trainer.config.out) / METRICS, "a") as file:
        file.write(json.dumps(line) + "\n")


def _photos(config: RLConfig, scale: int) -> tuple[list[Pair], list[Pair]]:
    """Photos to train on, and a selection of those that are held out."""
    if not config.data:
        raise ValueError("data: expected at least one folder, got none")
    fit = load_pairs(config.data, "train", scale)
    if config.dev_every:
        held = fit[config.dev_every - 1 :: config.dev_every]
        del fit[config.dev_every - 1 :: config.dev_every]
    else:
        held = load_pairs(config.data, "val", scale)
    # Every n-th, so that all sets are among them.
    return fit, held[:: max(1, len(held) // config.eval_photos)][: config.eval_photos]


def _cut_metrics(path: Path, done: int) -> None:
    """Leave out the lines of steps after the saved one: they come again."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
    with atomic_write(path) as file:
        file.write("".join(kept).encode())


def _shares(parts: list[Experience], count: int) -> list[list[Experience]]:
    """The micro-batches of each update, as evenly as they can be divided."""
    count = min(count, len(parts))
    edges = [i * len(parts) // count for i in range(count + 1)]
    return [parts[low:high] for low, high in pairwise(edges)]
