"""Co-evolutionary curriculum learning: which reward is climbed when (supplement, section 5.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from finpercep.rewards import Mixture, Reward
from finpercep.rl.checks import at_least_one, not_negative
from finpercep.runs.schedule import cosine

SWITCHES = ("hard", "blend", "auto")
OPTIMIZERS = ("keep", "reset", "rewarm")
ERRORS = 2.0
"""Standard errors that make a difference of paired photos one."""


@dataclass(frozen=True)
class CurriculumConfig:
    """How one stage's reward becomes the next one's.

    Attributes:
        switch: "hard": from one step to the next, as in the paper; "blend": over the first `blend_steps` of a stage the
            weight goes linearly from the former reward to the new one, each normalized in its groups where there are
            groups; "auto": a stage ends early, where its reward has flattened (see `evidence`), else after its steps.
        blend_steps: of "blend"; a shorter stage ends before its reward is climbed alone.
        patience: measurements that "auto" compares over.
        flat: share of the stage's whole gain below which the gain of the last `patience` measurements is flat.
        optimizer: at a switch: "keep" its moments, "reset" them, or "rewarm": keep them, and let the learning rate rise
            over `rewarm_steps`.
        rewarm_steps: of "rewarm", at most half of a stage.

    Raises:
        ValueError: an option out of its range.
    """

    switch: str = "hard"
    blend_steps: int = 100
    patience: int = 3
    flat: float = 0.2
    optimizer: str = "keep"
    rewarm_steps: int = 50

    def __post_init__(self) -> None:
        for name, values in (("switch", SWITCHES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: expected one of {', '.join(values)}, got {getattr(self, name)!r}")
        at_least_one(self, "blend_steps", "patience", "rewarm_steps")
        if not 0 <= self.flat < 1:
            raise ValueError(f"flat: expected 0 to below 1, got {self.flat}")


@dataclass(frozen=True)
class Stage:
    """A stretch of training against one reward.

    Attributes:
        reward: R_k.
        steps: how many updates it lasts.
        lr: learning rate at its beginning; it falls to 0 along a cosine.

    Raises:
        ValueError: an option out of its range.
    """

    reward: Reward
    steps: int
    lr: float = 1e-5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1 step in a stage, got {self.steps}")
        not_negative(self, "lr")


@dataclass(frozen=True)
class Moment:
    """Where in a curriculum a step lies.

    Attributes:
        stage: the stage, and `number` its place, from 0.
        step: how many steps of the stage lie before it.
        blend: weight of the stage's reward, in (0, 1]; below 1 the former stage's has the rest.
        before: the former stage's reward, where `blend` is below 1.
        rate: learning rate.
    """

    stage: Stage
    number: int
    step: int
    blend: float = 1.0
    before: Reward | None = None
    rate: float = 0.0

    @property
    def reward(self) -> Reward:
        """What is climbed in this step."""
        if self.before is None:
            return self.stage.reward
        before = _parts("before", self.before, 1 - self.blend)
        return Mixture({**before, **_parts("stage", self.stage.reward, self.blend)})


def _parts(name: str, reward: Reward, weight: float) -> dict[str, tuple[Reward, float]]:
    """A reward as parts of a mixture: those that it has itself, each of which is normalized in its groups, or one."""
    if not isinstance(reward, Mixture):
        return {name: (reward, weight)}
    return {f"{name}_{part}": (inner, weight * reward.weights[part]) for part, inner in reward.parts.items()}


class Curriculum:
    """Stages one after the other.

    With "auto" it has a state: what was measured by the present reward, and when the stages began.

    Raises:
        ValueError: no stage.
    """

    def __init__(self, stages: Sequence[Stage], config: CurriculumConfig | None = None) -> None:
        if not stages:
            raise ValueError("stages: expected at least one, got none")
        self.stages, self.config = tuple(stages), config or CurriculumConfig()
        lengths = [stage.steps for stage in self.stages]
        self.begins = [sum(lengths[:number]) for number in range(len(lengths))]
        self.measured: list[list[float]] = []  # rewards of the held-out photos, by one version of the reward
        self.version = ""
        self.evidence: Evidence | None = None  # of the last measurement, with "auto"

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of the stages' rewards."""
        return tuple(stage.reward.fingerprint for stage in self.stages)

    @property
    def steps(self) -> int:
        """How many there are in all; fewer, once a stage has ended early."""
        return self.begins[-1] + self.stages[-1].steps

    def at(self, step: int) -> Moment:
        """Where a step of the whole run, counted from 0, lies.

        Raises:
            ValueError: a step beyond the last stage.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f"step: expected 0 to {self.steps - 1}, got {step}")
        number = max(n for n, begin in enumerate(self.begins) if begin <= step)
        stage, within, config = self.stages[number], step - self.begins[number], self.config
        warmup = min(config.rewarm_steps, stage.steps // 2) if number and config.optimizer == "rewarm" else 0
        rate = stage.lr * cosine(within, warmup, stage.steps)
        if number and config.switch == "blend" and within + 1 < config.blend_steps:
            weight = (within + 1) / config.blend_steps
            return Moment(stage, number, within, weight, self.stages[number - 1].reward, rate)
        return Moment(stage, number, within, rate=rate)

    def note(self, done: int, rewards: Sequence[float], version: str = "") -> bool:
        """Take a measurement after `done` steps: the stage's reward of each held-out photo.

        Args:
            done: how many steps of the run there were.
            rewards: of the same photos each time.
            version: of the reward; what other versions gave is not compared with.

        Returns:
            Whether the stage ends here, because its reward has flattened ("auto"); `evidence` says why, or why not.
        """
        number, config = self.at(max(done - 1, 0)).number, self.config
        if version != self.version:
            self.measured, self.version = [], version
        self.measured.append([float(value) for value in rewards])
        if config.switch != "auto":
            return False
        self.evidence = evidence(self.measured, config.patience, config.flat)
        last = number + 1 == len(self.stages)
        if last or done == self.begins[number + 1] or not self.evidence.flat:
            return False
        shift = self.begins[number + 1] - done
        self.begins[number + 1 :] = [begin - shift for begin in self.begins[number + 1 :]]
        return True

    def state(self) -> dict[str, Any]:
        """What `load_state` takes back."""
        measured = [list(values) for values in self.measured]
        return {"begins": list(self.begins), "measured": measured, "version": self.version}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was."""
        self.begins, self.measured = list(state["begins"]), [list(values) for values in state["measured"]]
        self.version = state["version"]


@dataclass(frozen=True)
class Evidence:
    """Whether a reward has stopped to rise on the same photos.

    Attributes:
        flat: it has.
        reason: in words.
        figures: mean "gain" over the last measurements, its standard error "gain_error", and "whole_gain" since the
            first one; empty where there are too few.
    """

    flat: bool
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)


def evidence(measured: Sequence[Sequence[float]], patience: int, flat: float) -> Evidence:
    """Whether a reward has flattened.

    The rule: over the last `patience` measurements the mean gain is within two standard errors of none (of the paired
    differences, photo by photo), or it is less than `flat` of the gain since the first measurement.

    Args:
        measured: rewards of the same photos at one measurement after the other; fewer than `patience` + 1 of them
            decide nothing.
        patience: measurements over which the gain is taken, at least 1.
        flat: share of the whole gain, in [0, 1).
    """
    if len(measured) <= patience:
        return Evidence(False, f"{len(measured)} of the {patience + 1} measurements by one reward that it takes")
    gain, whole = paired(measured[-1 - patience], measured[-1]), paired(measured[0], measured[-1]).mean
    said = f"over {patience} measurements the reward rose by {gain.mean:.4f} ± {gain.error:.4f}"
    figures = {"gain": gain.mean, "gain_error": gain.error, "whole_gain": whole}
    if gain.mean <= ERRORS * gain.error:
        return Evidence(True, f"{said}, within two standard errors of none", figures)
    if gain.mean < flat * whole:
        return Evidence(True, f"{said}, less than {flat:g} of {whole:.4f} since the first", figures)
    return Evidence(False, f"{said}, of {whole:.4f} since the first", figures)


@dataclass(frozen=True)
class Paired:
    """Mean of differences, and its standard error."""

    mean: float
    error: float

    @property
    def rose(self) -> bool:
        """By more than `ERRORS` standard errors."""
        return self.mean > ERRORS * self.error

    @property
    def fell(self) -> bool:
        """By more than `ERRORS` standard errors."""
        return self.mean < -ERRORS * self.error


def paired(before: Sequence[float], after: Sequence[float]) -> Paired:
    """The change from `before` to `after` of the same photos; with one photo the error is infinite."""
    change = torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)
    error = float(change.std()) / math.sqrt(len(change)) if len(change) > 1 else math.inf
    return Paired(float(change.mean()), error)
