"""The random generators of Python and NumPy, which this package does not draw from, but code of others may."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

__all__ = ["load_state_of_others", "seed_others", "state_of_others"]


def seed_others(seed: int) -> None:
    """Begin both anew."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the one that others draw from


def state_of_others() -> dict[str, Any]:
    """Where both are, without objects: `load_state_of_others` goes on there."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def load_state_of_others(state: dict[str, Any]) -> None:
    """Go on where `state_of_others` was called."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
