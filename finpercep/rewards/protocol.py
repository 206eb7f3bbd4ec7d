"""What every reward is: images in, `RewardOutput` out, higher = better, with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from finpercep.models import RewardOutput


class Reward(Protocol):
    """A reward: called with images (B,3,H,W), float32 in [0, 1], it answers `RewardOutput(score (B,), map or None)`.

    `RewardModel` and `CLIPIQA` are rewards, and so is everything in `finpercep.rewards`.

    Attributes:
        fingerprint: a string that changes whenever the same image could score differently; of weights, 16 hex digits.
        takes: names of what it can be given beside the images as keyword arguments, of batch length: "lr" (the
            low-resolution images), "prompts", "metadata". A reward without this attribute takes nothing.
    """

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: Tensor, *args: Any, **context: Any) -> RewardOutput: ...


class WrongAnswerError(ValueError):
    """A reward that does not keep to the protocol: whatever the images, it is the reward that has to be mended."""


def call_reward(reward: Reward, images: Tensor, context: Mapping[str, Any]) -> RewardOutput:
    """Call `reward` with what it takes of `context`.

    Args:
        images: (B,3,H,W), float in [0, 1].
        context: name -> what belongs to the images, see `Reward.takes`; other names are ignored.

    Returns:
        The reward's output: score (B,), and its map (B,1,H,W) or None.

    Raises:
        WrongAnswerError: the reward answered with scores of another shape.
    """
    taken = {name: context[name] for name in getattr(reward, "takes", ()) if name in context}
    return checked(reward(images, **taken), images, reward)


def checked(output: RewardOutput, images: Tensor, reward: Any) -> RewardOutput:
    """The reward's answer to images (B,3,H,W).

    Raises:
        WrongAnswerError: its scores are not (B,).
    """
    if tuple(output.score.shape) != (len(images),):
        raise WrongAnswerError(
            f"reward: expected scores ({len(images)},) for {len(images)} images, got {tuple(output.score.shape)} "
            f"from {type(reward).__name__}"
        )
    return output


def combined_fingerprint(*parts: Any) -> str:
    """16 hex digits of plain values: numbers, strings, lists, dictionaries, other fingerprints."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
