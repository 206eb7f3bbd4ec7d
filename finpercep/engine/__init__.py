"""Scoring many images: `Scorer`, the files of `finpercep score`, and where the time goes: `profiled`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.engine.executor import Outcome
    from finpercep.engine.files import FileScore, map_file_names, score_files
    from finpercep.engine.scorer import Scorer
    from finpercep.engine.spans import Profile, profiled, span

__all__ = ["FileScore", "Outcome", "Profile", "Scorer", "map_file_names", "profiled", "score_files", "span"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        **dict.fromkeys(("FileScore", "map_file_names", "score_files"), "finpercep.engine.files"),
        "Outcome": "finpercep.engine.executor",
        "Scorer": "finpercep.engine.scorer",
        **dict.fromkeys(("Profile", "profiled", "span"), "finpercep.engine.spans"),
    },
)
