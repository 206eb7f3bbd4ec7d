"""What the settings of a run name: rewards, curriculum, judge, algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from finpercep.rewards import Mixture, Reward, StageReward, load_reward
from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.curriculum import Curriculum, Stage
from finpercep.rl.dpo import DPO, DPOConfig
from finpercep.rl.generators import Generator
from finpercep.rl.grpo import GRPO, GRPOConfig
from finpercep.rl.nft import NFT, NFTConfig
from finpercep.rl.refl import ReFL
from finpercep.rl.scores import awaits_map
from finpercep.runs.ranks import Ranks

Algorithm = ReFL | DPO | GRPO | NFT


@runtime_checkable
class Stateful(Protocol):
    """An algorithm that keeps more than the generator from step to step."""

    def state(self) -> Any:
        """Tensors and plain values, for a checkpoint."""

    def load_state(self, state: Any) -> None:
        """Take back what `state` gave."""


def load_rewards(config: RLConfig) -> dict[str, Reward]:
    """The stages' rewards by name, on the run's device; the same name is loaded once.

    Raises:
        ValueError, ImportError: see `load_reward`.
    """
    names = [stage.reward for stage in config.stages]  # in this order: they may draw random numbers
    return {name: load_reward(name, device=config.device) for name in dict.fromkeys(names)}


def build_curriculum(config: RLConfig, rewards: Mapping[str, Reward]) -> Curriculum:
    """The stages with their R_k = λ1·S + λ2·(1 - max̂(M)).

    Args:
        config: of the run.
        rewards: as `load_rewards` gives them.

    Raises:
        ValueError: spatial credit where no stage has a map.
    """
    stages = [Stage(_stage_reward(rewards[s.reward], s), s.steps, s.lr) for s in config.stages]
    if config.algorithm.map_weight and all(awaits_map(stage.reward) for stage in stages):
        names = ", ".join(sorted({stage.reward for stage in config.stages}))
        raise ValueError(f"algorithm.map_weight: expected a stage whose reward has a map, got {names}")
    return Curriculum(stages, config.curriculum)


def _stage_reward(reward: Reward, stage: StageConfig) -> Reward:
    """R_k of a reward; of a mixture the mixture of its parts' R_k, under their names and weights."""
    if not isinstance(reward, Mixture):
        return StageReward(
            reward,
            stage.score_weight,
            stage.map_weight,
            maximum=stage.maximum,
            fraction=stage.fraction,
            temperature=stage.temperature,
        )
    return Mixture({name: (_stage_reward(part, stage), reward.weights[name]) for name, part in reward.parts.items()})


def build_judge(config: RLConfig, rewards: Mapping[str, Reward]) -> Reward | None:
    """The judging reward, with both weights ½; None where there is none or it is climbed, under whatever name.

    Args:
        config: of the run.
        rewards: those that are climbed, by name.

    Raises:
        ValueError, ImportError: see `load_reward`.
    """
    if not config.monitors.judge or config.monitors.judge in rewards:
        return None
    judge = load_reward(config.monitors.judge, device=config.device)
    if any(judge.fingerprint in _fingerprints(reward) for reward in rewards.values()):
        return None
    return StageReward(judge)


def _fingerprints(reward: Reward) -> set[str]:
    """Of a reward, of its parts where it is a mixture, and of the reward inside where it is around one."""
    inside: list[Any] = [getattr(reward, "reward", None)]
    if isinstance(reward, Mixture):
        inside = list(reward.parts.values())
    return {reward.fingerprint}.union(*(_fingerprints(part) for part in inside if hasattr(part, "fingerprint")))


def build_algorithm(config: RLConfig, generator: Generator, ranks: Ranks) -> Algorithm:
    """The algorithm that the options are of.

    Raises:
        ValueError: groups that the processes cannot divide evenly.
    """
    options = config.algorithm
    if isinstance(options, GRPOConfig):
        return GRPO(generator, options, config.seed, ranks)
    if isinstance(options, NFTConfig):
        return NFT(generator, options, config.seed, ranks)
    if isinstance(options, DPOConfig):
        return DPO(generator, options, config.seed)
    return ReFL(generator, options, config.seed)
