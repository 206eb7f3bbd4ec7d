"""The mean of models' weights: often better than each of them, where one grew from another."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

__all__ = ["average_weights"]

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def average_weights(models: Sequence[Model], weights: Sequence[float] | None = None) -> Model:
    """A model whose weights are the mean of those of models that were trained from the same start ("model soups",
    Wortsman et al. 2022); the start itself may be among them. Models that were trained apart have no useful mean.

    Args:
        models: of one architecture, e.g. a `RewardModel` before and after training. They stay as they are.
        weights: the share of each; together 1. None gives all the same.

    Returns:
        A new model, like the first: its configuration, type and device. Means are taken in float64.

    Raises:
        ValueError: no model, shares that are not one per model or do not add up to 1, or models whose weights differ in
            name or shape, or whose configurations do.
    """
    if not models:
        raise ValueError("models: expected at least one, got none")
    shares = [1 / len(models)] * len(models) if weights is None else list(weights)
    if len(shares) != len(models) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"weights: expected {len(models)} that add up to 1, got {shares}")
    first, *others = models
    states = [model.state_dict() for model in models]
    for number, (model, state) in enumerate(zip(others, states[1:], strict=True), 1):
        if getattr(model, "config", None) != getattr(first, "config", None):
            raise ValueError(f"models[{number}]: expected the first one's configuration, got another")
        if {name: t.shape for name, t in state.items()} != {name: t.shape for name, t in states[0].items()}:
            raise ValueError(f"models[{number}]: expected weights of the first one's names and shapes, got others")
    mean = copy.deepcopy(first)
    for name, target in mean.state_dict().items():  # the model's own tensors
        if target.is_floating_point():
            parts = [share * state[name].double() for share, state in zip(shares, states, strict=True)]
            target.copy_(torch.stack([part.to(target.device) for part in parts]).sum(0))
    return mean
