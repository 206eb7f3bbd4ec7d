"""FinPercep as a metric of pyiqa: ``pyiqa.create_metric("finpercep")``.

Call `register` once before. pyiqa (0.1.16) also calls it, by the entry point in the group ``pyiqa.archs``, but only
when it first makes some metric, and it looks the name up before that: without `register`, "finpercep" is known from the
second metric on.

With `as_loss=True` pyiqa answers the mean score with its gradient; minimize its negative. Other rewards:
``create_metric("finpercep", reward="finpercep-small")``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from finpercep.rewards.load import load_reward

NAME, ARCHITECTURE = "finpercep", "FinPercep"


class FinPercep(nn.Module):
    """A no-reference metric: images (B,3,H,W) in [0, 1] to scores (B,1) in [0, 1], higher = better.

    Args:
        reward: what `load_reward` takes.
    """

    def __init__(self, reward: str = "finpercep-tiny") -> None:
        super().__init__()
        self.reward = load_reward(reward)

    def forward(self, images: Tensor, **_: Any) -> Tensor:
        """Scores (B,1), pyiqa's shape."""
        return self.reward(images).score[:, None]


def register() -> None:
    """Make "finpercep" known to pyiqa; a second call does nothing.

    Raises:
        ImportError: pyiqa is not installed.
    """
    try:
        from pyiqa.default_model_configs import DEFAULT_CONFIGS
        from pyiqa.utils.registry import ARCH_REGISTRY
    except ImportError as error:
        raise ImportError("the metric needs the package pyiqa: pip install 'finpercep[eval]'") from error
    if NAME in DEFAULT_CONFIGS:
        return
    ARCH_REGISTRY.register(FinPercep, name=ARCHITECTURE)
    DEFAULT_CONFIGS[NAME] = {
        "metric_opts": {"type": ARCHITECTURE},
        "metric_mode": "NR",
        "lower_better": False,
        "score_range": "0, 1",
    }
