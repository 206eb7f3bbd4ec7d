"""How the learning rate changes over a run."""

from __future__ import annotations

import math

__all__ = ["cosine"]


def cosine(step: int, warmup: int, steps: int) -> float:
    """Factor of the rate: linear over `warmup` steps, then a cosine to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
