"""Settings of a run of reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from finpercep.rewards import StageReward, load_reward
from finpercep.rl.curriculum import Curriculum, Stage
from finpercep.rl.dpo import DPO, DPOConfig
from finpercep.rl.generators import Generator, GeneratorConfig
from finpercep.rl.grpo import GRPO, GRPOConfig
from finpercep.rl.nft import NFT, NFTConfig
from finpercep.rl.refl import ReFL, ReFLConfig

AlgorithmConfig = ReFLConfig | DPOConfig | GRPOConfig | NFTConfig
Algorithm = ReFL | DPO | GRPO | NFT
KINDS: Mapping[str, type] = {"refl": ReFLConfig, "dpo": DPOConfig, "grpo": GRPOConfig, "nft": NFTConfig}
ALGORITHMS: Mapping[type, type] = {ReFLConfig: ReFL, DPOConfig: DPO, GRPOConfig: GRPO, NFTConfig: NFT}


@dataclass(frozen=True)
class StageConfig:
    """One stage: R_k = λ1·S + λ2·(1 - max̂(M)) of a reward by name; see `load_reward` and `StageReward`."""

    reward: str = "finpercep-tiny"
    steps: int = 10_000
    lr: float = 1e-5
    score_weight: float = 0.5
    map_weight: float = 0.5


@dataclass(frozen=True)
class RLConfig:
    """One run; written to `<out>/rl.json`.

    Attributes:
        data: folders with an index.jsonl whose scenes have photos and low-resolution images, see `load_pairs`.
        out: the run's folder: the generator, metrics.jsonl, pictures, and the state to resume from.
        generator: name, folder, hub id or module:Class, see `load_generator`.
        generator_options: what of it is trained, and how it is sampled, where it is a pipeline of diffusers.
        algorithm: options of ReFL, DPO, GRPO or NFT; their type is the choice.
        stages: the curriculum.
        batch: low-quality images in a step.
        side: of the crops of photos, pixels.
        degraded: share of the low-resolution images that are made on the fly by the degradation pipeline.
        updates: of the weights for each collection; its rows are divided among them.
        max_norm: to which the gradient is limited.
        dev_every: hold out every n-th training photo, measure on those, and leave `val` unseen, as whoever chooses
            settings needs it; 0 measures on `val`.
        eval_every: steps between measurements on held-out photos.
        eval_photos: how many photos they use.
        eval_steps: of the sampler, when measuring.
    """

    data: tuple[str, ...] = ()
    out: str = "runs/rl"
    generator: str = "finpercep-sr-tiny"
    generator_options: GeneratorConfig = field(default_factory=GeneratorConfig)
    algorithm: AlgorithmConfig = field(default_factory=ReFLConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    batch: int = 4
    side: int = 96
    degraded: float = 0.5
    updates: int = 1
    weight_decay: float = 1e-4
    max_norm: float = 1.0
    save_every: int = 50
    dev_every: int = 0
    eval_every: int = 50
    eval_photos: int = 16
    eval_steps: int = 3
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("batch", "updates", "save_every", "eval_every", "eval_photos", "eval_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.dev_every == 1 or self.dev_every < 0:
            raise ValueError(f"dev_every: expected 0 or at least 2, got {self.dev_every}")


def comparable(config: RLConfig) -> dict[str, Any]:
    """What must not change when a run is resumed, with tuples as a state file gives them back."""
    settings = asdict(config) | {"kind": type(config.algorithm).__name__}
    return {name: value for name, value in settings.items() if name not in ("out", "save_every", "device")}


def build_curriculum(config: RLConfig) -> Curriculum:
    """The stages with their rewards loaded; the same name is loaded once."""
    rewards = {name: load_reward(name, device=config.device) for name in {stage.reward for stage in config.stages}}
    return Curriculum(
        [Stage(StageReward(rewards[s.reward], s.score_weight, s.map_weight), s.steps, s.lr) for s in config.stages]
    )


def build_algorithm(config: RLConfig, generator: Generator) -> Algorithm:
    """The algorithm that the options are of."""
    return ALGORITHMS[type(config.algorithm)](generator, config.algorithm, config.seed)
