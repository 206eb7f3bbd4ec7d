"""What the package offers by name."""

from __future__ import annotations

import re
from pathlib import Path

import finpercep.rl as rl


def test_the_package_says_where_everything_is():
    """Each module once, in the list or before it."""
    modules = sorted(path.stem for path in Path(rl.__file__).parent.iterdir() if not path.stem.startswith("__"))
    named = re.findall(r"`([a-z_]+)(?:\.\w+)?`", rl.__doc__)
    assert sorted(set(named) - {"collect", "loss"}) == modules
    assert len(named) - len(modules) == 2  # and these two


def test_public_names():
    assert [name for name in rl.__all__ if getattr(rl, name).__name__ != name] == []
