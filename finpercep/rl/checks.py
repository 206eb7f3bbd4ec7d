"""Checks that several options share."""

from __future__ import annotations

import math


def at_least_one(options: object, *names: str) -> None:
    """Raise ValueError for the first of some counts that is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")


def not_negative(options: object, *names: str) -> None:
    """Raise ValueError for the first of some finite numbers that is below 0, or none."""
    for name in names:
        if not 0 <= getattr(options, name) < math.inf:
            raise ValueError(f"{name}: expected 0 or more, got {getattr(options, name)}")


def above_zero(options: object, *names: str) -> None:
    """Raise ValueError for the first of some numbers, which may be infinite, that is not above 0."""
    for name in names:
        if not getattr(options, name) > 0:
            raise ValueError(f"{name}: expected more than 0, got {getattr(options, name)}")


def finite(options: object, *names: str) -> None:
    """Raise ValueError for the first of some numbers that is infinite or none."""
    for name in names:
        if not math.isfinite(getattr(options, name)):
            raise ValueError(f"{name}: expected a number, got {getattr(options, name)}")


def share(options: object, *names: str) -> None:
    """Raise ValueError for the first of some shares that is not from 0 to 1."""
    for name in names:
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"{name}: expected 0 to 1, got {getattr(options, name)}")
