"""What every reward is: images in, `RewardOutput` out, higher = better, with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from finpercep.models import RewardOutput

CONTEXT = ("lr", "prompts", "metadata")
"""What loops have beside images; see `Reward.takes`."""


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


def check_higher_better(reward: Any, name: str = "reward") -> None:
    """Refuse a reward whose lower scores are better: what is around it would hide that.

    Raises:
        ValueError: it says `lower_better`; `name` is what the message begins with.
    """
    if getattr(reward, "lower_better", False):
        raise ValueError(
            f"{name}: expected a reward whose higher scores are better, but lower ones are; "
            'negate it, or load metrics of pyiqa with load_reward("pyiqa:NAME")'
        )


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
        WrongAnswerError: it is no `RewardOutput`, its scores are not (B,), or its map is not (B,1,H,W), of floats.
    """
    score, faults = getattr(output, "score", None), getattr(output, "map", None)
    if not isinstance(score, Tensor):
        raise _wrong(
            reward, "RewardOutput(score, map) with scores in a tensor", type(output if score is None else score)
        )
    if tuple(score.shape) != (len(images),):
        raise _wrong(reward, f"scores ({len(images)},) for {len(images)} images", tuple(score.shape))
    if not score.is_floating_point():
        raise _wrong(reward, "scores of floats", score.dtype)
    if faults is None:
        return output
    if not isinstance(faults, Tensor) or not faults.is_floating_point():
        raise _wrong(reward, "a map of floats in a tensor, or None", getattr(faults, "dtype", type(faults)))
    if tuple(faults.shape) != (size := (len(images), 1, *images.shape[-2:])):
        raise _wrong(reward, f"a map {size} for images {tuple(images.shape)}", tuple(faults.shape))
    return output


def _wrong(reward: Any, expected: str, found: Any) -> WrongAnswerError:
    name = found.__name__ if isinstance(found, type) else found
    return WrongAnswerError(f"reward: expected {expected}, got {name} from {type(reward).__name__}")


def combined_fingerprint(*parts: Any) -> str:
    """16 hex digits of plain values: numbers, strings, lists, dictionaries, other fingerprints."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
