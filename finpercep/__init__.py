"""FinPercep: a fine-grained perceptual reward model for super-resolution, and the compiled kernels it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

__version__ = "0.1.0"
__all__ = [
    "CLIPIQA",
    "ImageError",
    "RewardModel",
    "RewardOutput",
    "Scorer",
    "__version__",
    "available_models",
    "load_base",
    "ops",
    "worst_mean",
]

if TYPE_CHECKING:
    from finpercep import ops
    from finpercep.engine.scorer import Scorer
    from finpercep.io.images import ImageError
    from finpercep.models.base import load_base
    from finpercep.models.checkpoint import available_models
    from finpercep.models.clip_iqa import CLIPIQA
    from finpercep.models.output import RewardOutput
    from finpercep.models.reward_model import RewardModel
    from finpercep.models.scoring import worst_mean

# On first use: `import finpercep` stays quick, and `finpercep.ops` needs nothing but torch.
__getattr__, __dir__ = lazy(
    __name__,
    {
        "CLIPIQA": "finpercep.models.clip_iqa",
        "ImageError": "finpercep.io.images",
        "RewardModel": "finpercep.models.reward_model",
        "RewardOutput": "finpercep.models.output",
        "Scorer": "finpercep.engine.scorer",
        "available_models": "finpercep.models.checkpoint",
        "load_base": "finpercep.models.base",
        "ops": "finpercep.ops",
        "worst_mean": "finpercep.models.scoring",
    },
)
