"""What the package offers by name."""

from __future__ import annotations

import finpercep.rl as rl


def test_public_names():
    assert [name for name in rl.__all__ if getattr(rl, name).__name__ != name] == []
