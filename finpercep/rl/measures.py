"""Further held-out measures by name, which the loop does not climb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor

from finpercep.data.features.perceptual import load_stlpips
from finpercep.rewards import load_reward
from finpercep.rl.batch import Batch
from finpercep.rl.scores import score

ST_LPIPS = "st-lpips"


@dataclass(frozen=True)
class Measure:
    """A measure of results.

    Attributes:
        sign: 1 where higher is better, -1 where lower is.
        function: results (B,3,H,W) in [0, 1] and their batch, with photos -> (B,).
    """

    sign: int
    function: Callable[[Tensor, Batch], Tensor]


def load_measures(names: Sequence[str], device: str) -> dict[str, Measure]:
    """Measures by name: "st-lpips", the distance to the photo, or any no-reference reward of `load_reward`.

    Raises:
        ImportError: a package is missing; names the extra.
        ValueError: a name that names nothing.
    """
    return {name: _st_lpips(device) if name == ST_LPIPS else _reward(name, device) for name in names}


def _reward(name: str, device: str) -> Measure:
    try:
        reward = load_reward(name, device=device)
    except ValueError as error:
        if not get_close_matches(name.lower(), [ST_LPIPS], 1):
            raise
        raise ValueError(
            f"monitors.metrics: expected {ST_LPIPS} or a reward, got {name!r}; did you mean {ST_LPIPS}?"
        ) from error
    return Measure(1, lambda images, batch: score(reward, images, batch).score)


def _st_lpips(device: str) -> Measure:
    """Shift-tolerant LPIPS (arXiv 2207.13686) on AlexNet."""
    model = load_stlpips("alex", f"monitors.metrics: {ST_LPIPS}").to(device)

    def distance(images: Tensor, batch: Batch) -> Tensor:
        assert batch.photo is not None
        found: Tensor = model(images.float(), batch.photo.float(), normalize=True)
        return found.flatten()

    return Measure(-1, distance)
