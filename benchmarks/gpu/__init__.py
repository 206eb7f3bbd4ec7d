"""The check of a CUDA machine: `python -m benchmarks.gpu` builds, tests and measures, and writes `results/`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import finpercep

ROOT = Path(__file__).resolve().parent.parent.parent


def find_kernels() -> None:
    """Make `finpercep.kernels` importable from a tree that nobody installed: only an install maps it to `kernels/`."""
    if importlib.util.find_spec("finpercep.kernels") is None:
        finpercep.__path__.append(str(ROOT))


find_kernels()
