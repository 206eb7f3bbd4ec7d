"""Scoring many images: today, files one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.engine.files import FileScore, map_file_names, score_files

__all__ = ["FileScore", "map_file_names", "score_files"]

__getattr__, __dir__ = lazy(__name__, dict.fromkeys(__all__, "finpercep.engine.files"))
