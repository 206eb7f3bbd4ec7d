"""Co-evolutionary curriculum learning: which reward is climbed when (supplement, section 5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finpercep.rewards import Reward


@dataclass(frozen=True)
class Stage:
    """A stretch of training against one reward.

    Attributes:
        reward: R_k.
        steps: how many updates it lasts.
        lr: learning rate at its beginning; it falls to 0 along a cosine.
    """

    reward: Reward
    steps: int
    lr: float = 1e-5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1 step in a stage, got {self.steps}")


@dataclass(frozen=True)
class Moment:
    """Where in a curriculum a step lies.

    Attributes:
        stage: the stage, and `number` its place, from 0.
        step: how many steps of the stage lie before it.
    """

    stage: Stage
    number: int
    step: int


class Curriculum:
    """Stages one after the other, with a hard switch between them, as in the paper.

    Raises:
        ValueError: no stage.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise ValueError("stages: expected at least one, got none")
        self.stages = tuple(stages)
        self.fingerprints = tuple(stage.reward.fingerprint for stage in self.stages)
        self.steps = sum(stage.steps for stage in self.stages)

    def at(self, step: int) -> Moment:
        """The stage of a step of the whole run, counted from 0.

        Raises:
            ValueError: a step beyond the last stage.
        """
        within = step
        for number, stage in enumerate(self.stages):
            if within < stage.steps:
                return Moment(stage, number, within)
            within -= stage.steps
        raise ValueError(f"step: expected 0 to {self.steps - 1}, got {step}")
