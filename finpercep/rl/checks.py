"""Checks that several options share."""

from __future__ import annotations


def at_least_one(options: object, *names: str) -> None:
    """Raise ValueError for the first of some counts that is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")
