"""Several rewards at once: added, or each normalized in its group before they are added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finpercep import ops
from finpercep.models import RewardOutput
from finpercep.rewards.protocol import Reward, call_reward, check_higher_better, combined_fingerprint


class Mixture(nn.Module):
    """A weighted sum of rewards.

    Scores of different rewards have different spreads, and the widest decides a plain sum. For algorithms that use
    groups, `advantages` normalizes each reward in its group first, so that the weights mean what they say.

    Args:
        parts: name -> (reward, weight).

    Raises:
        ValueError: no part, a weight that is not positive, or a part whose lower scores are better.
    """

    def __init__(self, parts: Mapping[str, tuple[Reward, float]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts: expected at least one reward, got none")
        for name, (reward, weight) in parts.items():
            if name == "avg":
                raise ValueError("parts: expected names other than avg, which is the sum of all in the log")
            if not callable(reward):
                raise ValueError(f"parts[{name!r}]: expected a reward, got {reward!r}; load_reward makes one of a name")
            if not 0 < weight < math.inf:
                raise ValueError(f"parts[{name!r}]: expected a positive weight, got {weight}")
            check_higher_better(reward, f"parts[{name!r}]")
        self.weights = {name: float(weight) for name, (_, weight) in parts.items()}
        # Modules are held as such alone, so that .to(), .parameters() and a view in evaluation mode reach them.
        self.modules_of_parts = nn.ModuleList(part for part, _ in parts.values() if isinstance(part, nn.Module))
        self._others = {name: part for name, (part, _) in parts.items() if not isinstance(part, nn.Module)}

    @property
    def parts(self) -> dict[str, Any]:
        """The rewards by name, in the order that was given."""
        modules = iter(self.modules_of_parts)
        return {name: self._others[name] if name in self._others else next(modules) for name in self.weights}

    @property
    def takes(self) -> tuple[str, ...]:
        """What any of the parts takes."""
        return tuple(sorted({name for part in self.parts.values() for name in getattr(part, "takes", ())}))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the parts and their weights."""
        prints = {name: part.fingerprint for name, part in self.parts.items()}
        return combined_fingerprint("mixture", list(prints.items()), self.weights)  # the map is the last one's

    def outputs(self, images: Tensor, **context: Any) -> dict[str, RewardOutput]:
        """The output of each part, by name."""
        return {name: call_reward(part, images, context) for name, part in self.parts.items()}

    def forward(self, images: Tensor, **context: Any) -> RewardOutput:
        """The weighted sum of the scores (B,), and the map of the last part that has one: in RL the stage's own."""
        outputs = self.outputs(images, **context)
        score = torch.stack([self.weights[name] * output.score for name, output in outputs.items()]).sum(0)
        maps = [output.map for output in outputs.values() if output.map is not None]
        return RewardOutput(score, maps[-1] if maps else None)

    def advantages(self, scores: Mapping[str, Tensor], **grouping: Any) -> tuple[Tensor, dict[str, ops.GroupStats]]:
        """Eq. 5 for each reward alone, then their weighted sum (the order of GDPO and LucidNFT).

        GDPO normalizes the sum over the batch besides: there the weights are relative to each other alone.

        Args:
            scores: part -> (N,), the scores of whole groups.
            **grouping: arguments of `ops.group_advantage`, such as `group_size` or `group_ids`.

        Returns:
            Advantages (N,), and the statistics of each part's groups.

        Raises:
            TypeError: `scores` is no mapping.
            ValueError: it does not have exactly the parts of this mixture, or not as many scores of each.
        """
        if not isinstance(scores, Mapping):
            raise TypeError(f"scores: expected them by part, see `outputs`, got {type(scores).__name__}")
        if scores.keys() != self.parts.keys():
            raise ValueError(f"scores: expected those of {sorted(self.parts)}, got {sorted(scores)}")
        counts = {name: len(values) for name, values in scores.items()}
        if len({*counts.values()}) > 1:
            raise ValueError(f"scores: expected as many of every part, got {counts}")
        total, stats = None, {}
        for name, values in scores.items():
            advantages, stats[name] = ops.group_advantage(values, **grouping)
            advantages = self.weights[name] * advantages
            total = advantages if total is None else total + advantages
        assert total is not None  # there is at least one part
        return total, stats
