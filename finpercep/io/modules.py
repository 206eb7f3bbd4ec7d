"""What a user names as ``module:name``: a reward, a generator, a loop of one's own."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["imported"]


def imported(module: str, name: str) -> Any:
    """The attribute `name` of a module.

    Raises:
        ImportError: the module cannot be imported.
        ValueError: no module is named, or it has no such name; the nearest one is suggested.
    """
    spec = f"{module}:{name}"
    if not module or module.startswith("."):
        raise ValueError(f"{spec}: expected the full name of a module before the colon, got {module!r}")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{spec}: expected a module that can be imported, got: {error}") from error
    if not hasattr(found, name):
        from difflib import get_close_matches

        near = get_close_matches(name, dir(found), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{spec}: the module {module} has no {name!r}{hint}")
    return getattr(found, name)
