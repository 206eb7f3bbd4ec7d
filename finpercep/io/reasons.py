"""Errors of other libraries in one line, for messages that start with the file or argument they are about."""

from __future__ import annotations

import re

__all__ = ["one_line", "printable"]

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# torch's refusal of a pickle advises, at length, to load it with code in it allowed: nobody should.
_REFUSED = "Weights only load failed"
_ADVICE = re.compile(r"weights_only|torch\.load|trust|safe_globals|two options|arbitrary code|^\(\d\)$")


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """What an error says, on one line of at most `limit` characters; the name of its type where it says nothing.

    Colors are dropped, and so is torch's advice to load a refused pickle with `weights_only=False`.
    """
    text = _ANSI.sub("", str(error))
    if _REFUSED in text:
        sentences = re.split(r"(?<=[.!?:])\s+|\n+", text)
        text = " ".join(s for s in sentences if s.strip() and not _ADVICE.search(s))
    text = " ".join(text.split())
    if not text:
        return type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def printable(text: str) -> str:
    """`text`, of a file name or with one in it, as one line that a terminal only shows: controls are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
