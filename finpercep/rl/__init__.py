"""Reinforcement learning of super-resolution generators against a reward that grows.

A run is `loop.train`: it makes a `trainer.RLTrainer`, whose step lets an algorithm `collect` what there is to learn
from, and a `learning.Learner` update the generator by the algorithm's `loss`. Read on in

- algorithms: `refl` (Eq. 1 and 2), `dpo` (Eq. 3), `grpo` (Eq. 4 to 6), with `sde_rollout`, `window` and `trust`, `nft`
- what they share: `coordinates`, `rollout`, `experience`, `scores`, `groups`, `spatial`
- the reward over time: `curriculum`, `refresh`
- what is not climbed: `held_out`, `measurement`, `measures`, `monitors`, `best`, `climbs`
- photos: `pair`, `pairs`, `pair_sets`, `precomputed`, `photos`, `batch`, `run_data`, `pairs_fingerprint`
- settings: `config`, `checks`, `settings`, `settings_yaml`, `build`
- stopping and going on: `checkpoints`, `resumable`
- memory and time: `compiled`, `sharded`, `cache`, `latents`, `clock`
- what is shown: `remarks`, `screen`, `pictures`, `report`
- `generators`: what is trained
"""

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
