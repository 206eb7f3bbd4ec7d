"""Seeds: every random decision of the generator is a function of the data set's seed and of what it is for.

Decisions are few and drawn one by one, from torch generators. Numbers per pixel and per sample of a batch come from
`random_bits`, which is given such seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

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


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number uniform in [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def integer(low: int, high: int, generator: torch.Generator) -> int:
    """One integer uniform in [low, high], both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def choose(items: Sequence[T], generator: torch.Generator) -> T:
    """One item, all equally likely."""
    return items[integer(0, len(items) - 1, generator)]
