"""Reinforcement learning of super-resolution generators against a reward that grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.rl.batch import Batch
    from finpercep.rl.config import RLConfig, StageConfig
    from finpercep.rl.coordinates import Steps
    from finpercep.rl.curriculum import Curriculum, CurriculumConfig, Stage
    from finpercep.rl.dpo import DPO, DPOConfig
    from finpercep.rl.generators import Generator, GeneratorConfig, GeneratorModule, SRTiny, load_generator
    from finpercep.rl.grpo import GRPO, GRPOConfig
    from finpercep.rl.loop import train
    from finpercep.rl.monitors import MonitorConfig
    from finpercep.rl.nft import NFT, NFTConfig
    from finpercep.rl.refl import ReFL, ReFLConfig
    from finpercep.rl.refresh import RefreshConfig
    from finpercep.rl.rollout import enlarge

__all__ = [
    "DPO",
    "GRPO",
    "NFT",
    "Batch",
    "Curriculum",
    "CurriculumConfig",
    "DPOConfig",
    "GRPOConfig",
    "Generator",
    "GeneratorConfig",
    "GeneratorModule",
    "MonitorConfig",
    "NFTConfig",
    "RLConfig",
    "ReFL",
    "ReFLConfig",
    "RefreshConfig",
    "SRTiny",
    "Stage",
    "StageConfig",
    "Steps",
    "enlarge",
    "load_generator",
    "train",
]

_HOMES = {
    "finpercep.rl.batch": ("Batch",),
    "finpercep.rl.config": ("RLConfig", "StageConfig"),
    "finpercep.rl.coordinates": ("Steps",),
    "finpercep.rl.curriculum": ("Curriculum", "CurriculumConfig", "Stage"),
    "finpercep.rl.dpo": ("DPO", "DPOConfig"),
    "finpercep.rl.generators": ("Generator", "GeneratorConfig", "GeneratorModule", "SRTiny", "load_generator"),
    "finpercep.rl.grpo": ("GRPO", "GRPOConfig"),
    "finpercep.rl.monitors": ("MonitorConfig",),
    "finpercep.rl.nft": ("NFT", "NFTConfig"),
    "finpercep.rl.refl": ("ReFL", "ReFLConfig"),
    "finpercep.rl.refresh": ("RefreshConfig",),
    "finpercep.rl.rollout": ("enlarge",),
    "finpercep.rl.loop": ("train",),
}
__getattr__, __dir__ = lazy(__name__, {name: home for home, names in _HOMES.items() for name in names})
