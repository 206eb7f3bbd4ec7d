"""Tables of kinds: what may stand behind an option such as ``--sr KIND:VALUE``, and what each kind is opened by.

A table says all that the rest needs to know of a kind: parsing, messages and help texts are made from it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Kind", "one_of", "split_kind", "usages"]


@dataclass(frozen=True)
class Kind:
    """One line of a table.

    Attributes:
        usage: how it is written, "NAME" or "NAME:VALUE".
        home: what opens it, "module:callable"; imported when it is needed.
        takes: the options that `home` is called with.
        help: a few words for where the usage does not say enough.
        values: the only values that it knows, "module:sequence"; empty where any value may do.
    """

    usage: str
    home: str
    takes: tuple[str, ...] = ()
    help: str = ""
    values: str = ""

    def open(self, *arguments: str, **options: Any) -> Any:
        """Call `home` with the arguments and those of the options that it takes.

        Raises:
            TypeError: an option that it needs is missing.
        """
        return _find(self.home)(*arguments, **{name: options[name] for name in self.takes if name in options})

    def known_values(self) -> tuple[str, ...]:
        """The values that it knows; empty where any value may do."""
        return tuple(_find(self.values)) if self.values else ()


def _find(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(module), name)


def split_kind(table: Mapping[str, Kind], text: str, expected: str) -> tuple[str, str]:
    """The kind and the value that `text` names.

    Args:
        table: the kinds by name.
        text: "NAME" or "NAME:VALUE".
        expected: how the message begins, e.g. "sr: expected".

    Returns:
        The name, and the value ("" for a kind that has none).

    Raises:
        ValueError: a kind that the table does not have, a value that is missing, or one that must not be there.
    """
    name, _, value = text.partition(":")
    if name not in table or (":" in table[name].usage) != bool(value) or (not value and text != name):
        raise ValueError(f"{expected} {one_of(kind.usage for kind in table.values())}, got {text!r}")
    return name, value


def usages(table: Mapping[str, Kind]) -> str:
    """What help texts say of a table: "a (some words), b or c:VALUE"."""
    return one_of(f"{kind.usage} ({kind.help})" if kind.help else kind.usage for kind in table.values())


def one_of(words: Iterable[str]) -> str:
    """ "a, b or c"."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
