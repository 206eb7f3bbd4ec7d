"""Updates of the weights from what was collected, of all processes together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from finpercep.rl.experience import Experience
from finpercep.rl.generators import GeneratorModule
from finpercep.runs.finite import FiniteGuard
from finpercep.runs.ranks import Ranks


class Learner:
    """Makes updates by the mean over all rows; a process without rows takes part in them.

    Args:
        algorithm: whose loss it is, and whose micro-batches.
        max_norm: to which the gradient is limited.
    """

    def __init__(self, algorithm: Any, generator: GeneratorModule, ranks: Ranks, max_norm: float) -> None:
        self.algorithm, self.generator, self.ranks, self.max_norm = algorithm, generator, ranks, max_norm
        self.device = generator.trainable_parameters()[0].device
        self.guard = FiniteGuard(self.device)

    def learn(
        self, experience: Experience, optimizer: torch.optim.Optimizer, updates: int, step: int
    ) -> dict[str, Tensor]:
        """Divide the rows among `updates` updates; returns the means of their terms, none where nobody has rows.

        Raises:
            FloatingPointError: a reward, a loss or a gradient is not finite.
            RatioError: see `GRPO.loss`.
        """
        parts = list(experience.parts(self.algorithm.config.micro_batch))
        terms: dict[str, Tensor] = {}
        rows = self.ranks.total(len(experience))
        fresh = True  # the weights are those that sampled
        for share in _shares(parts, updates):
            if not (total := self.ranks.total(sum(map(len, share)))):
                continue
            for name, value in self._update(share, total, optimizer, step, fresh=fresh).items():
                terms[name] = terms.get(name, 0) + value * total / rows
            fresh = False
        for look in experience.looks:
            look()
        self.guard.check()
        return terms

    def _update(
        self, parts: Sequence[Experience], rows: int, optimizer: torch.optim.Optimizer, step: int, *, fresh: bool
    ) -> dict[str, Tensor]:
        """One update by the mean over the rows of `parts`, of all processes; returns the means of their terms."""
        terms: dict[str, Tensor] = {}
        optimizer.zero_grad(set_to_none=True)
        for part in parts:
            found = self.algorithm.loss(replace(part, fresh=fresh))
            (found["loss"] * (len(part) / rows)).backward()
            for name, value in found.items():
                terms[name] = terms.get(name, 0) + value.detach() * (len(part) / rows)
        parameters = self.generator.trainable_parameters()
        terms = self._complete(terms, parameters)
        self.ranks.add([p.grad for p in parameters if p.grad is not None])
        self.ranks.add(list(terms.values()))
        norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
        self.guard.step(optimizer, step, terms["loss"], norm)
        return {**terms, "grad_norm": norm}

    def _complete(self, terms: dict[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        """Zeros for the terms and gradients that other processes have: all add the same tensors, or wait forever."""
        if self.ranks.size == 1:
            return terms
        found = self.ranks.gathered((list(terms), [p.grad is not None for p in parameters]))
        for parameter, *having in zip(parameters, *(grads for _, grads in found), strict=True):
            if any(having) and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        names = next(names for names, _ in found if names)
        return {name: terms.get(name, torch.zeros((), device=self.device)) for name in names}


class Skips:
    """Counts the steps in which nobody had anything to learn.

    Args:
        limit: how many of them in a row are an error.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.total, self.in_row = limit, 0, 0

    def note(self, hint: str, step: int, *, tell: bool) -> None:
        """Take a step that was skipped, and say what to do.

        Raises:
            ValueError: `limit` of them in a row.
        """
        self.total, self.in_row = self.total + 1, self.in_row + 1
        if self.in_row >= self.limit:
            raise ValueError(f"{hint}; {self.in_row} steps in a row taught nothing")
        if tell:
            warnings.warn(f"step {step} is skipped: {hint}", stacklevel=2)


def _shares(parts: list[Experience], count: int) -> list[list[Experience]]:
    """The micro-batches of each of `count` updates, as evenly as they can be divided; some may be empty."""
    edges = [i * len(parts) // count for i in range(count + 1)]
    return [parts[low:high] for low, high in pairwise(edges)]
