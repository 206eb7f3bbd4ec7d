"""Seeds: every random decision of the generator is a function of the data set's seed and of what it is for.

Decisions are few and drawn one by one, from torch generators. Numbers per pixel and per sample of a batch come from
`random_bits`, which is given such seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

__all__ = ["chance", "choose", "integer", "seed_of", "seeded", "stream", "uniform", "uniform32"]

T = TypeVar("T")


def seed_of(seed: int, *names: object) -> int:
    """63 bits for one purpose: neighbors in `seed` or `names` are not alike, and any machine gives the same.

    `random_bits` uses all of them, torch's CPU generator the lower 32.
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 1


def seeded(seed: int, *names: object) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``seeded(seed, photo, "mask", 3)``."""
    return torch.Generator().manual_seed(seed_of(seed, *names))


def stream(seed: int, index: int, number: int) -> torch.Generator:
    """A CPU generator for one (seed, index) and purpose: mixed, so that neighbors are not alike.

    For training triplets alone: with `seeded` a run that was begun before would go on with other triplets.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number uniform in [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def uniform32(low: float, high: float, generator: torch.Generator) -> float:
    """One number uniform in [low, high), drawn in single precision.

    For `masks.simple`, built-in sources and training triplets: published faults and stored data sets hold its draws.
    """
    return low + (high - low) * torch.rand((), generator=generator).item()


def chance(share: float, generator: torch.Generator) -> bool:
    """True with the probability `share`."""
    return torch.rand((), generator=generator).item() < share


def integer(low: int, high: int, generator: torch.Generator) -> int:
    """One integer uniform in [low, high], both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def choose(items: Sequence[T], generator: torch.Generator) -> T:
    """One item, all equally likely."""
    return items[integer(0, len(items) - 1, generator)]
