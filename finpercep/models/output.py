"""What every reward answers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RewardOutput(NamedTuple):
    """`score` (B,) in [0, 1], higher = better; `map` (B,1,H,W) in [0, 1], 1 = degraded, at input resolution.

    `map` is None of a reward without one. From `RewardModel.score` of a list, it is a list of (1,H,W), one for each
    image.
    """

    score: Tensor
    map: Tensor | list[Tensor] | None
