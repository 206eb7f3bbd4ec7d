"""Scores of many files: what ``finpercep score`` and the demo print."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from finpercep.engine.executor import Outcome
from finpercep.engine.scorer import Scorer
from finpercep.io.images import IMAGE_SUFFIXES, ImageError
from finpercep.io.parquet import Row, read_rows
from finpercep.io.pictures import overlay, save_image
from finpercep.io.reasons import one_line
from finpercep.models.scoring import worst_mean

if TYPE_CHECKING:
    from finpercep.models.reward_model import RewardModel

__all__ = ["FileScore", "figures_of", "map_file_names", "score_files"]


class FileScore(NamedTuple):
    """The figures of one file, or why there are none (`error`, one line without the path); `path` of a row is its name,
    as it stands in the file.

    Those of the map are NaN for a model without one (RM_0).
    """

    path: Path | str
    score: float = float("nan")
    map_mean: float = float("nan")
    map_worst: float = float("nan")
    error: str | None = None


def score_image(model: RewardModel, image: Tensor) -> tuple[float, float, float, Tensor | None]:
    """Score, mean of the map, mean of its worst 1 %, and the map (1,H,W) of one image (3,H,W).

    The means are NaN and the map is None for a model without one (RM_0).

    Raises:
        FloatingPointError: the model gives a score or a map that is not finite.
    """
    out = model.score([image])
    outcome = Outcome(out.score[0], None if out.map is None else out.map[0])
    return (*figures_of(outcome), outcome.map)


def score_files(
    model: RewardModel | Scorer, files: Sequence[Path] | Sequence[Row], *, maps: str | os.PathLike[str] | None = None
) -> Iterator[FileScore]:
    """Score files, or rows of Parquet files (`io.parquet.find_rows`), and yield each result in order, as soon as it is
    there; holds a bounded number of images.

    With `maps`, an overlay of each is written there as PNG, named by `map_file_names`; a model without a map gives
    none. A file that cannot be read or scored, or whose overlay cannot be written, gives a result with `error`; the
    others go on.
    """
    names = map_file_names(names_of(files), Path(maps)) if maps is not None else None
    scorer = model if isinstance(model, Scorer) else Scorer(model)
    try:
        yield from score_named(scorer, files, names)
    finally:
        if scorer is not model:
            scorer.close()


def names_of(files: Sequence[Path] | Sequence[Row]) -> list[Path | str]:
    """Under which names results are given."""
    return [file.name if isinstance(file, Row) else file for file in files]


def score_named(
    scorer: Scorer, files: Sequence[Path] | Sequence[Row], names: Sequence[Path] | None
) -> Iterator[FileScore]:
    """`score_files`, where the name of each overlay is given."""
    paths = names_of(files)
    rows = [file for file in files if isinstance(file, Row)]

    def finish(image: Tensor, outcome: Outcome, index: int) -> FileScore:
        figures = figures_of(outcome)
        if names is not None and outcome.map is not None:
            save_image(overlay(image, outcome.map), names[index])
        return FileScore(paths[index], *figures)

    for path, found in zip(paths, scorer.stream(read_rows(rows) if rows else files, then=finish), strict=True):
        yield _failure(path, found) if isinstance(found, Exception) else found


def figures_of(outcome: Outcome) -> tuple[float, float, float]:
    """Score, mean of the map, mean of its worst 1 %; the means are NaN without a map.

    Raises:
        FloatingPointError: a score or a map that is not finite.
    """
    score, degradation = float(outcome.score), outcome.map
    if not (math.isfinite(score) and (degradation is None or bool(degradation.isfinite().all()))):
        raise FloatingPointError(f"expected a finite score and map, got score {score} from the model")
    if degradation is None:
        return score, float("nan"), float("nan")
    return score, float(degradation.mean()), float(worst_mean(degradation[None])[0])


def _failure(path: Path | str, error: Exception) -> FileScore:
    if isinstance(error, (ImageError, FloatingPointError)):
        return FileScore(path, error=str(error).removeprefix(f"{path}: "))
    if isinstance(error, OSError):
        return FileScore(path, error=f"expected to write its map, got {error.strerror or error}: {error.filename}")
    if isinstance(error, (RuntimeError, MemoryError)):
        reason = one_line(error) if str(error).strip() else "no memory"
        return FileScore(path, error=f"expected to score it, got {reason}")
    return FileScore(path, error=one_line(error))  # of a reward that refuses it, say


def map_file_names(paths: Sequence[Path | str], folder: Path) -> list[Path]:
    """Where the overlay of each file goes: ``scene/gt.webp`` becomes ``folder/scene__gt.map.png``.

    Names hold the folders in which the files differ, so equal file names do not meet; what would still meet
    (also on file systems that ignore case), or would overwrite one of the inputs, gets a number.
    """
    absolute = [os.path.abspath(p) for p in paths]
    common = os.path.commonpath([os.path.dirname(p) for p in absolute]) if absolute else ""
    taken = {p.casefold() for p in absolute}
    names = []
    for path in absolute:
        stem, suffix = os.path.splitext(os.path.relpath(path, common))
        stem = f"{stem}{'' if suffix.lower() in IMAGE_SUFFIXES else suffix}".replace(os.sep, "__")
        if len(os.fsencode(stem)) > 200:  # file systems stop at 255 bytes
            stem = f"{stem[-40:]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
        name, number = folder / f"{stem}.map.png", 1
        while os.path.abspath(name).casefold() in taken:
            number += 1
            name = folder / f"{stem}-{number}.map.png"
        taken.add(os.path.abspath(name).casefold())
        names.append(name)
    return names
