"""One loop for every algorithm: collect, learn, log, save."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from finpercep.evaluation.climb import Climb
from finpercep.rewards import Reward
from finpercep.rl.batch import Batch
from finpercep.rl.best import Best
from finpercep.rl.build import Stateful, build_algorithm, build_curriculum, build_judge, load_rewards
from finpercep.rl.checkpoints import checkpoints, whole_folder, write_checkpoint
from finpercep.rl.climbs import check_climb
from finpercep.rl.clock import Clock, timed
from finpercep.rl.compiled import compile_run
from finpercep.rl.config import RLConfig, check_updates
from finpercep.rl.curriculum import Moment
from finpercep.rl.experience import DeadGroups, Experience
from finpercep.rl.generators import GeneratorModule, load_generator
from finpercep.rl.learning import Learner, Skips
from finpercep.rl.measurement import Measurement
from finpercep.rl.measures import load_measures
from finpercep.rl.monitors import Alarm, check_measured
from finpercep.rl.pair_sets import PICTURES
from finpercep.rl.precomputed import empty_texts
from finpercep.rl.refl import ReFLConfig
from finpercep.rl.refresh import REFRESHED, Refresh
from finpercep.rl.resumable import changed_rewards, check_resumable, comparable
from finpercep.rl.run_data import run_data
from finpercep.rl.scores import check_rewards
from finpercep.rl.sharded import shard_networks
from finpercep.runs.ema import MovingAverage
from finpercep.runs.random_state import load_state_of_others, seed_others, state_of_others
from finpercep.runs.ranks import Ranks, own_device
from finpercep.runs.state import read_state

STATE_PARTS = (
    *("step", "generator", "optimizer", "random", "random_device", "settings", "curriculum", "alarm", "rewards"),
    "skipped",
)
"""What every state has, besides what only some runs have."""


class RLTrainer:
    """Generator, reward, algorithm and data of one run; `step()` makes one step, `save()` / `resume()` are exact.

    Everything random is a function of the seed and the step, but for what modules draw themselves (dropout), whose
    generator, torch's, is part of the state. Nothing draws from those of Python and NumPy, which rewards and generators
    of one's own may: they begin at the seed, and are part of the state.
    """

    def __init__(self, config: RLConfig) -> None:
        torch.manual_seed(config.seed)
        seed_others(config.seed)
        self.device = own_device(config.device)
        self.config = config = replace(config, device=str(self.device))
        self.ranks = Ranks(self.device)
        # Of a step's images; where groups are divided, every process has a part of each.
        self.rows = slice(0, config.batch) if config.across else self.ranks.rows(config.batch)
        check_updates(config, self.ranks.size)
        shift_side = config.generator_options.shift_side or config.side
        self.generator: GeneratorModule = load_generator(
            config.generator,
            replace(config.generator_options, shift_side=shift_side),
            device=config.device,
            empty_texts=empty_texts(config.data),
        )
        self.generator.keep_reference()
        rewards = load_rewards(config)
        self.curriculum, judge = build_curriculum(config, rewards), build_judge(config, rewards)
        measures = load_measures(config.monitors.metrics, config.device)
        self.algorithm = build_algorithm(config, self.generator, self.ranks)
        self.optimizer = self._new_optimizer()
        self.average = MovingAverage(self.generator.trainable_parameters(), config.ema) if config.ema else None
        data = run_data(config, self.generator)
        self.crops, self.held_out, self.kept = data.crops, data.held_out, data.kept
        one, photo = self.held_out.batch[:1].to(self.device), self.held_out.photo[:1].to(self.device)
        stages = {stage.reward: self.curriculum.stages[n].reward for n, stage in enumerate(config.stages)}
        gradients, maps = isinstance(config.algorithm, ReFLConfig), config.algorithm.map_weight > 0
        check_rewards(stages, photo, one, gradients=gradients, maps=maps)
        if config.shard:
            shard_networks(self.generator, self.ranks, self.device)
        if config.compile:
            compile_run(self.generator, [stage.reward for stage in self.curriculum.stages], self.held_out, self.device)
        if config.monitors.climb:
            check_climb(stages, photo)
        pictures = Path(config.out) / PICTURES
        self.measurement = Measurement(self.held_out, self.generator, judge, measures, self.device, pictures)
        self.refresh = None
        if config.refresh.every:
            fixed = (self.held_out.photo, self.measurement.before, self.held_out.aligned)
            models = {stage.reward: rewards[stage.reward] for stage in config.stages[config.first_refreshed :]}
            self.refresh = Refresh(config.refresh, models, self.crops, fixed, config.eval_steps, config.seed)
        self.fingerprints = list(self.curriculum.fingerprints)
        self.settings = comparable(config) | {
            "generator_fingerprint": self.generator.fingerprint,
            "reward_fingerprints": list(self.fingerprints),
            "data_fingerprint": data.fingerprint,
            "judge_fingerprint": None if judge is None else judge.fingerprint,
        }
        signs = {name: measure.sign for name, measure in measures.items()}
        self.alarm, self.alarms = Alarm(config.monitors.patience, signs), list[str]()
        if config.monitors.best == "judge" and judge is None:
            raise ValueError(
                "monitors.best: expected a measure of this run, got 'judge', which has none: it is left out, or climbed"
            )
        self.best = Best(config.monitors.best, self.alarm.better) if config.monitors.best else None
        self.learner = Learner(self.algorithm, self.generator, self.ranks, config.max_norm)
        self.skips, self.clock = Skips(config.max_skipped), Clock(self.device)
        self.switch = ""  # what the last measurement says of the stage, with "auto"
        self.trained_on, self.crops_known = set[str](), 0
        self.done = 0

    def _new_optimizer(self) -> torch.optim.AdamW:
        parameters = self.generator.trainable_parameters()
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=self.config.weight_decay)

    @property
    def moment(self) -> Moment:
        """Where in the curriculum the next step lies."""
        return self.curriculum.at(self.done)

    @property
    def stage(self) -> int:
        """The stage of the last step; of a run that has made none, the first."""
        return self.curriculum.at(max(self.done - 1, 0)).number

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.done >= self.curriculum.steps

    def version(self, stage: int) -> int:
        """How often the reward of a stage has been refreshed."""
        return self.refresh.versions.get(self.config.stages[stage].reward, 0) if self.refresh else 0

    def refreshes(self, stage: int) -> bool:
        """Whether the reward of a stage is refreshed while it is climbed: no other than a `RewardModel` can be."""
        if self.refresh is None or stage < self.config.first_refreshed:
            return False
        return self.config.stages[stage].reward in self.refresh.models

    def step(self) -> dict[str, float]:
        """Collect, and update the weights `updates` times; returns the figures of the step.

        Where no group's rewards differ, of any process, there is no update, and "skipped" counts it.

        Raises:
            FloatingPointError: a reward, a loss or a gradient is not finite.
            ValueError: too many steps in a row were skipped.
            ValueError, RuntimeError: see the algorithms.
        """
        with self.clock.running():
            figures = self._step()
        return figures

    def times(self) -> dict[str, float]:
        """Results per second of the last step, of all processes, and the shares of its time, in [0, 1].

        They are no part of the log, which is exact. The reward's backward pass, which ReFL has, counts as update.
        """
        seconds = self.clock.seconds()
        total = sum(seconds.values())
        shares = {f"time/{name}": seconds.get(name, 0.0) / total for name in ("rollout", "reward", "update")}
        return {"time/images_per_second": self.config.results / total, **shares}

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
            experience = self._collect(batch, moment.reward)
        with timed("update"):
            terms = self.learner.learn(experience, self.optimizer, config.updates, self.done)
        if terms:
            self.skips.in_row = 0
        else:
            self.skips.note(experience.hint, self.done, tell=self.ranks.first)
        if self.average is not None:
            self.average.update(self.done)
        self.done += 1
        means = [experience.figures[name].detach().float() / self.ranks.size for name in experience.figures]
        self.ranks.add(means)
        figures = dict(zip(experience.figures, map(float, means), strict=True))
        place = {"stage": moment.number, "version": self.version(moment.number), "lr": moment.rate}
        place["trained_prompt_num"] = self._count_images()
        if moment.before is not None:
            place["blend"] = moment.blend
        if self.skips.total:
            place["skipped"] = self.skips.total
        return {**place, **figures, **{name: float(value) for name, value in terms.items()}, **changed}

    def _count_images(self) -> int:
        """How many different low-resolution images all steps so far were of; a resumed run counts them anew."""
        crops = self.done * self.config.batch
        self.trained_on |= self.crops.names(range(self.crops_known, crops))
        self.crops_known = crops
        return len(self.trained_on)

    def _collect(self, batch: Batch, reward: Reward) -> Experience:
        """What there is to learn from; no rows where all of this process's groups are dead."""
        try:
            return self.algorithm.collect(batch, reward, self.done)
        except DeadGroups as dead:
            return Experience(batch[:0], {}, dead.figures, hint=str(dead))

    def _refresh(self) -> dict[str, float]:
        """Refresh the reward where it is due; returns what that changed."""
        number = self.moment.number
        if self.refresh is None or not self.refreshes(number) or not self.refresh.due(self.done):
            return {}
        name = self.config.stages[number].reward
        changed = self.refresh.run(name, self.generator, self.device)
        # Where kernels add up in no fixed order, each process has learned something a little different.
        self.ranks.take_first(self.refresh.models[name].state_dict().values())
        self.fingerprints = list(self.curriculum.fingerprints)
        return changed

    def evaluate(self) -> dict[str, float]:
        """Held-out figures by the reward of the last step's stage, and a picture in `<out>/pictures`.

        Where the reward has flattened, the stage ends here, and `switch` says why; alarms are added to `alarms`;
        `monitors.best` keeps the best generator so far in `<out>/best`.

        Raises:
            FloatingPointError: a figure is not finite; names it.
        """
        number, values = self.stage, dict[str, Tensor]()
        if self.ranks.first or self.config.shard:  # what is sharded runs in all processes or in none
            picture = self.done if self.ranks.first else None
            with self._used():
                values = self.measurement.figures(self.generator, self.curriculum.stages[number].reward, picture)
        values = self.ranks.agreed(values)
        check_measured(values, self.done, self.config.monitors.metrics)
        version = f"{number}.{self.version(number)}"
        found = [] if self.config.monitors.alarm == "off" else self.alarm.note(version, values)
        self.alarms += found
        if self.best is not None and self.best.improved(values):
            self.export("best")
        ends = self.curriculum.note(self.done, values["reward_avg"].tolist(), version)
        figures = {f"eval/{name}": float(value.mean()) for name, value in values.items()}
        figures["eval/reward_avg_std"] = float(values["reward_avg"].std(correction=0))
        if (evidence := self.curriculum.evidence) is not None:
            over = not ends and (self.finished or self.done in self.curriculum.begins[1:])
            why = f"its {self.curriculum.stages[number].steps} steps" if over else evidence.reason
            self.switch = f"stage {number} {'ends' if ends or over else 'goes on'}: {why}"
            figures |= {f"switch/{name}": value for name, value in evidence.figures.items()}
        return {**figures, "eval/alarms": float(len(found))}

    def climb(self) -> list[Climb]:
        """The climb test of the last step's reward on the first `monitors.climb` held-out results; empty without."""
        count, here = self.config.monitors.climb, self.ranks.first or self.config.shard
        if not count or not here:
            return []
        with self._used():
            return self.measurement.climb(self.generator, self.curriculum.stages[self.stage].reward, count)

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
            "random_device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "random_others": state_of_others(),
            "settings": self.settings,
            "curriculum": self.curriculum.state(),
            "alarm": self.alarm.state(),
            "rewards": list(self.fingerprints),
            "skipped": [self.skips.total, self.skips.in_row],
        }
        if self.average is not None:
            state["average"] = self.average.averages
        if isinstance(self.algorithm, Stateful):
            state["algorithm"] = self.algorithm.state()
        if self.best is not None:
            state["best"] = self.best.value
        if self.refresh is not None:
            state["refresh"] = self.refresh.state()
        with self._used():
            write_checkpoint(Path(self.config.out), self.done, state, self._save_models, self.config.keep)

    def _save_models(self, folder: Path) -> None:
        """Into the folder of a checkpoint: the generator as it is measured, and rewards that have been refreshed."""
        self.generator.save_pretrained(folder / "generator")
        if self.refresh is not None:
            self.refresh.save(folder / REFRESHED, self._refreshed())

    def _refreshed(self) -> dict[int, str]:
        """Stage -> name of the reward that has been refreshed, which is named by the last stage that has begun."""
        begun = self.config.stages[: self.stage + 1]
        last = {stage.reward: number for number, stage in enumerate(begun)}
        return {number: name for name, number in last.items() if self.version(number)}

    def export(self, name: str = "generator") -> None:
        """Write `<out>/NAME`: the generator as it is measured."""
        if self.ranks.first:
            with self._used():
                self.generator.save_pretrained(Path(self.config.out) / name)

    def export_rewards(self) -> None:
        """Write `<out>/refreshed`: the reward models that have been refreshed, as they are now, if there are any."""
        refreshed, out = self._refreshed(), Path(self.config.out)
        if self.refresh is not None and refreshed and self.ranks.first:
            with whole_folder(out / REFRESHED, out / f".{REFRESHED}.tmp") as folder:
                self.refresh.save(folder, refreshed)

    def resume(self) -> bool:
        """Go on from the last checkpoint in the run's folder, if there is one; the run then is one that never stopped.

        Raises:
            ValueError: it cannot be read, or was made with other settings, another generator or other rewards.
        """
        found = checkpoints(Path(self.config.out))
        if not found:
            return False
        folder = found[-1][1]
        state = read_state(folder, STATE_PARTS, f"delete {folder} to go on from the checkpoint before it, if any")
        assert state is not None  # `checkpoints` has seen it
        check_resumable(state["settings"], self.settings, self.config, folder)
        self.generator.load_trained_state(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_device"] is not None:
            torch.cuda.set_rng_state(state["random_device"], self.device)
        if "random_others" in state:  # states of before have none
            load_state_of_others(state["random_others"])
        self.curriculum.load_state(state["curriculum"])
        self.alarm.load_state(state["alarm"])
        self.skips.total, self.skips.in_row = state["skipped"]
        if self.average is not None:
            self.average.averages = [tensor.to(self.device) for tensor in state["average"]]
        if isinstance(self.algorithm, Stateful) and "algorithm" in state:
            self.algorithm.load_state(state["algorithm"])
        if self.best is not None:
            self.best.value = state["best"]
        if self.refresh is not None:
            self.refresh.load_state(state["refresh"])
        self.fingerprints = list(self.curriculum.fingerprints)
        changed = changed_rewards(state, self.fingerprints, self.settings, self.config, self.curriculum.steps, folder)
        if "rewards" in changed:
            self.curriculum.measured, self.alarm.measured = [], []
        if "judge" in changed:
            self.alarm.forget("judge")
            if self.best is not None and self.best.name == "judge":
                self.best.value = None
        self.done = state["step"]
        return True
