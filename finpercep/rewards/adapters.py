"""Rewards of other packages as rewards of ours: functions as flow_grpo has them, and metrics of pyiqa."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finpercep.models import RewardOutput
from finpercep.rewards.protocol import WrongAnswerError, combined_fingerprint


class FunctionReward:
    """A scoring function as flow_grpo has them: `function(images, prompts, metadata) -> scores | (scores, info)`.

    `scores` is anything of B numbers, or a dictionary with their weighted sum under "avg", as flow_grpo's multi_score
    gives. Most such functions turn images into files, so their scores have no gradient, which ReFL needs.

    Args:
        function: the scoring function.
        name: what the fingerprint is made of, such as "module:function"; it has to change when the function does.
    """

    takes = ("prompts", "metadata")

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the name."""
        return combined_fingerprint("function", self.name)

    def __call__(
        self, images: Tensor, *, prompts: Sequence[str] | None = None, metadata: Sequence[Any] | None = None
    ) -> RewardOutput:
        """Scores (B,), float32 on the device of the images (B,3,H,W); no map. Prompts default to empty ones.

        Raises:
            WrongAnswerError: the function did not answer with B numbers; names it.
        """
        size = len(images)
        context = list(prompts or [""] * size), list(metadata or ({} for _ in range(size)))
        try:
            answer = self.function(images, *context)
        except RuntimeError as error:
            # Of .numpy(): a function that leaves torch takes images without gradients, and gives scores without.
            if "requires grad" not in str(error) or not images.requires_grad:
                raise
            answer = self.function(images.detach(), *context)
        scores = answer[0] if isinstance(answer, tuple) else answer
        if isinstance(scores, Mapping):
            if "avg" not in scores:
                raise WrongAnswerError(f'{self.name}: expected scores under "avg", got {sorted(scores)}')
            scores = scores["avg"]
        try:
            score = torch.as_tensor(scores).to(images.device, torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise WrongAnswerError(f"{self.name}: expected {size} scores, got {type(scores).__name__}") from error
        if tuple(score.shape) != (size,):
            raise WrongAnswerError(f"{self.name}: expected {size} scores, got shape {tuple(score.shape)}")
        return RewardOutput(score, None)


class PyIQAReward(nn.Module):
    """A no-reference metric of pyiqa with gradients; the sign is turned where lower values are better.

    Args:
        name: as `pyiqa.list_models(metric_mode="NR")` lists them, e.g. "musiq".

    Raises:
        ImportError: pyiqa is not installed.
        ValueError: pyiqa does not know the name, cannot get its weights, or it compares with a reference.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import pyiqa
        except ImportError as error:
            raise ImportError(f"pyiqa:{name} needs the package pyiqa: pip install 'finpercep[eval]'") from error
        known = pyiqa.list_models(metric_mode="NR")
        if name not in known:
            from difflib import get_close_matches

            near = get_close_matches(name, known, 3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"pyiqa:{name}: expected a no-reference metric of pyiqa{hint}")
        try:
            self.metric = pyiqa.create_metric(name, as_loss=True, loss_reduction="none", device="cpu")
        except Exception as error:  # downloads fail in many ways
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"pyiqa:{name}: pyiqa cannot load it: {reason}") from error
        self.name, self.sign = name, -1.0 if self.metric.lower_better else 1.0

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the metric's name and pyiqa's version."""
        from importlib.metadata import version

        return combined_fingerprint("pyiqa", self.name, version("pyiqa"))

    def forward(self, images: Tensor) -> RewardOutput:
        """Scores (B,), higher = better, in the metric's own units; no map."""
        return RewardOutput(self.sign * self.metric(images).reshape(len(images)), None)
