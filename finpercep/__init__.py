"""FinPercep: a fine-grained perceptual reward model for super-resolution, and the compiled kernels it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "CLIPIQA",
    "ImageError",
    "RewardModel",
    "RewardOutput",
    "__version__",
    "available_models",
    "ops",
    "worst_mean",
]

if TYPE_CHECKING:
    from finpercep import ops
    from finpercep.io.images import ImageError
    from finpercep.models import CLIPIQA, RewardModel, RewardOutput, available_models, worst_mean

_HOMES = {
    "CLIPIQA": "finpercep.models",
    "ImageError": "finpercep.io.images",
    "RewardModel": "finpercep.models",
    "RewardOutput": "finpercep.models",
    "available_models": "finpercep.models",
    "worst_mean": "finpercep.models",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import finpercep` stays quick, and `finpercep.ops` needs nothing but torch."""
    import importlib

    if name == "ops":
        return importlib.import_module("finpercep.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'finpercep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
