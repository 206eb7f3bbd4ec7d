"""One loop for every algorithm: collect, learn, log, save."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from finpercep.io.pictures import save_image
from finpercep.rl.checkpoints import checkpoints, write_checkpoint
from finpercep.rl.clock import Clock, timed
from finpercep.rl.config import RLConfig, build_algorithm, build_curriculum, build_judge, comparable, load_rewards
from finpercep.rl.curriculum import Moment
from finpercep.rl.ema import MovingAverage
from finpercep.rl.experience import Experience
from finpercep.rl.generators import GeneratorModule, load_generator
from finpercep.rl.held_out import HeldOut
from finpercep.rl.latents import keep_latents
from finpercep.rl.monitors import Alarm
from finpercep.rl.photos import Crops, Pair, load_pairs
from finpercep.rl.pictures import comparison
from finpercep.rl.ranks import Ranks
from finpercep.rl.refresh import Refresh
from finpercep.runs.finite import FiniteGuard
from finpercep.runs.state import check_settings, read_state

STATE_PARTS = ("step", "generator", "optimizer", "random", "settings", "curriculum", "alarm")


class RLTrainer:
    """Generator, reward, algorithm and data of one run; `step()` makes one step, `save()` / `resume()` are exact.

    Everything random is a function of the seed and the step, but for what modules draw themselves (dropout), whose
    generator is part of the state.
    """

    def __init__(self, config: RLConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(config.device)
        self.ranks = Ranks(self.device)
        self.rows = self.ranks.rows(config.batch)
        self.generator: GeneratorModule = load_generator(
            config.generator, config.generator_options, device=config.device
        )
        self.generator.keep_reference()
        rewards = load_rewards(config)
        self.curriculum, self.judge = build_curriculum(config, rewards), build_judge(config, rewards)
        self.algorithm = build_algorithm(config, self.generator)
        self.optimizer = self._new_optimizer()
        self.average = MovingAverage(self.generator.trainable_parameters(), config.ema) if config.ema else None
        fit, held = _photos(config, self.generator.scale)
        keep_latents(fit, self.generator, config.side, degraded=config.degraded)
        self.crops = Crops(fit, config.side, scale=self.generator.scale, degraded=config.degraded, seed=config.seed)
        self.held_out = HeldOut(held, config.side, self.generator.scale, config.eval_steps)
        self.before = self.held_out.images(self.generator, self.device)
        self.refresh = None
        if config.refresh.every:
            assert self.held_out.batch.photo is not None
            fixed = (self.held_out.batch.photo, self.before)
            self.refresh = Refresh(config.refresh, rewards, self.crops, fixed, config.eval_steps, config.seed)
        self.fingerprints = list(self.curriculum.fingerprints)
        self.settings = comparable(config) | {
            "generator_fingerprint": self.generator.fingerprint,
            "reward_fingerprints": list(self.fingerprints),
        }
        self.alarm, self.alarms = Alarm(config.monitors.patience), list[str]()
        self.guard, self.clock = FiniteGuard(self.device), Clock(self.device)
        self.done = 0

    def _new_optimizer(self) -> torch.optim.AdamW:
        parameters = self.generator.trainable_parameters()
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=self.config.weight_decay)

    @property
    def moment(self) -> Moment:
        """Where in the curriculum the next step lies."""
        return self.curriculum.at(self.done)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.done >= self.curriculum.steps

    def version(self, stage: int) -> int:
        """How often the reward of a stage has been refreshed."""
        return self.refresh.versions[self.config.stages[stage].reward] if self.refresh else 0

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
        config = self.config
        changed = self._refresh()
        moment = self.moment
        if moment.number and not moment.step and config.curriculum.optimizer == "reset":
            self.optimizer = self._new_optimizer()
        for group in self.optimizer.param_groups:
            group["lr"] = moment.rate
        batch = self.generator.prepare(self.crops.batch(self.done, config.batch)[self.rows].to(self.device))
        with timed("rollout"):
            # One version of the reward scores all groups of a step, and advantages are normalized inside of them.
            experience = self.algorithm.collect(batch, moment.reward, self.done)
        self.images = config.batch * getattr(config.algorithm, "group_size", 1)
        parts = list(experience.parts(config.algorithm.micro_batch))
        terms: dict[str, Tensor] = {}
        with timed("update"):
            rows = self.ranks.total(len(experience))
            for number, share in enumerate(_shares(parts, config.updates)):
                if not (total := self.ranks.total(sum(map(len, share)))):
                    continue
                for name, value in self._update(share, total, fresh=number == 0).items():
                    terms[name] = terms.get(name, 0) + value * total / rows
            self.guard.check()
        if self.average is not None:
            self.average.update(self.done)
        self.done += 1
        means = [experience.figures[name].detach().float() / self.ranks.size for name in experience.figures]
        self.ranks.add(means)
        figures = dict(zip(experience.figures, map(float, means), strict=True))
        place = {"stage": moment.number, "version": self.version(moment.number), "lr": moment.rate}
        if moment.before is not None:
            place["blend"] = moment.blend
        return {**place, **figures, **{name: float(value) for name, value in terms.items()}, **changed}

    def _update(self, parts: Sequence[Experience], rows: int, *, fresh: bool) -> dict[str, Tensor]:
        """One update by the mean over the rows of `parts`, of all processes; returns the means of their terms."""
        terms: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            found = self.algorithm.loss(replace(part, fresh=fresh))
            (found["loss"] * (len(part) / rows)).backward()
            for name, value in found.items():
                terms[name] = terms.get(name, 0) + value.detach() * (len(part) / rows)
        parameters = self.generator.trainable_parameters()
        self.ranks.add([p.grad for p in parameters if p.grad is not None])
        self.ranks.add(list(terms.values()))
        norm = nn.utils.clip_grad_norm_(parameters, self.config.max_norm)
        self.guard.step(self.optimizer, self.done, terms["loss"], norm)
        return {**terms, "grad_norm": norm}

    def _refresh(self) -> dict[str, float]:
        """Refresh the reward where it is due; returns what that changed."""
        if self.refresh is None or not self.refresh.due(self.done):
            return {}
        changed = self.refresh.run(self.config.stages[self.moment.number].reward, self.generator, self.device)
        self.fingerprints = list(self.curriculum.fingerprints)
        return changed

    def evaluate(self) -> dict[str, float]:
        """Held-out figures by the reward of the last step's stage, and a picture in `<out>/pictures`.

        Where the reward has flattened, the stage ends here; alarms are added to `alarms`.
        """
        number = self.curriculum.at(max(self.done - 1, 0)).number
        values = self.ranks.agreed(self._measure(number) if self.ranks.first else {})
        version = f"{number}.{self.version(number)}"
        found = [] if self.config.monitors.alarm == "off" else self.alarm.note(version, values)
        self.alarms += found
        if self.curriculum.note(self.done, values["reward_avg"].tolist()) or self.done == self._end(number):
            self.curriculum.measured = []  # the next stage's reward is another one
        figures = {f"eval/{name}": float(value.mean()) for name, value in values.items()}
        return {**figures, "eval/alarms": float(len(found))}

    def _end(self, stage: int) -> int:
        begins = [*self.curriculum.begins, self.curriculum.steps]
        return begins[stage + 1]

    def _measure(self, number: int) -> dict[str, Tensor]:
        """Figures of the held-out photos, photo by photo, and a picture."""
        reward = self.curriculum.stages[number].reward
        with self._used():
            images = self.held_out.images(self.generator, self.device)
            values = self.held_out.measure(images, reward, self.device, self.judge)
            values["velocity_distance"] = self.held_out.distance(self.generator, self.device)
        rows = slice(0, 6)
        sheet = comparison(
            self.held_out.batch[rows].to(self.device),
            self.before[rows].to(self.device),
            images[rows].to(self.device),
            reward,
        )
        save_image(sheet, Path(self.config.out) / "pictures" / f"step-{self.done:06d}.png")
        return values

    def _used(self) -> AbstractContextManager[None]:
        """Inside, the generator is what is measured and saved."""
        return nullcontext() if self.average is None else self.average.used()

    def save(self) -> None:
        """Write `checkpoint-N`; a kill at any moment leaves those that were there, whole.

        Raises:
            OSError: a full disk, no permission; names the file.
        """
        if not self.ranks.first:
            return
        state = {
            "step": self.done,
            # Copies: while the file is written, the generator is the average.
            "generator": {name: tensor.clone() for name, tensor in self.generator.trained_state().items()},
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "settings": self.settings,
            "curriculum": self.curriculum.state(),
            "alarm": self.alarm.state(),
            "rewards": list(self.fingerprints),
        }
        if self.average is not None:
            state["average"] = self.average.averages
        if self.refresh is not None:
            state["refresh"] = self.refresh.state()
        with self._used():
            write_checkpoint(Path(self.config.out), self.done, state, self.generator.save_pretrained, self.config.keep)

    def export(self) -> None:
        """Write `<out>/generator`: the generator as it is measured."""
        if self.ranks.first:
            with self._used():
                self.generator.save_pretrained(Path(self.config.out) / "generator")

    def resume(self) -> bool:
        """Go on from the last checkpoint in the run's folder, if there is one; the run then is one that never stopped.

        Raises:
            ValueError: it cannot be read, or was made with other settings, another generator or other rewards.
        """
        found = checkpoints(Path(self.config.out))
        state = read_state(found[-1][1], STATE_PARTS) if found else None
        if state is None:
            return False
        folder = found[-1][1]
        check_settings(state["settings"], self.settings, folder)
        self.generator.load_trained_state(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.curriculum.load_state(state["curriculum"])
        self.alarm.load_state(state["alarm"])
        if self.average is not None:
            self.average.averages = [tensor.to(self.device) for tensor in state["average"]]
        if self.refresh is not None:
            self.refresh.load_state(state["refresh"])
        self.fingerprints = list(self.curriculum.fingerprints)
        if self.fingerprints != state["rewards"]:
            raise ValueError(
                f"{folder}: expected rewards {', '.join(state['rewards'])} as they were saved, got "
                f"{', '.join(self.fingerprints)}"
            )
        self.done = state["step"]
        return True


def _photos(config: RLConfig, scale: int) -> tuple[list[Pair], list[Pair]]:
    """Photos to train on, and a selection of those that are held out."""
    if not config.data:
        raise ValueError("data: expected at least one folder, got none")
    fit = load_pairs(config.data, "train", scale)
    if config.dev_every:
        held = fit[config.dev_every - 1 :: config.dev_every]
        del fit[config.dev_every - 1 :: config.dev_every]
        if not held:
            raise ValueError(f"dev_every: expected at most the {len(fit)} photos there are, got {config.dev_every}")
    else:
        held = load_pairs(config.data, "val", scale)
    # Every n-th, so that all sets are among them.
    return fit, held[:: max(1, math.floor(len(held) / config.eval_photos))][: config.eval_photos]


def _shares(parts: list[Experience], count: int) -> list[list[Experience]]:
    """The micro-batches of each of `count` updates, as evenly as they can be divided; some may be empty."""
    edges = [i * len(parts) // count for i in range(count + 1)]
    return [parts[low:high] for low, high in pairwise(edges)]
