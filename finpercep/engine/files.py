"""Scores of many files, one after the other: what ``finpercep score`` and the demo print."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from finpercep.io.images import ImageError, load_image
from finpercep.io.pictures import overlay, save_image
from finpercep.io.reasons import one_line
from finpercep.models.scoring import worst_mean

if TYPE_CHECKING:
    from finpercep.models.reward_model import RewardModel

__all__ = ["FileScore", "map_file_names", "score_files"]


class FileScore(NamedTuple):
    """The figures of one file, or why there are none (`error`, one line without the path).

    Those of the map are NaN for a model without one (RM_0).
    """

    path: Path
    score: float = float("nan")
    map_mean: float = float("nan")
    map_worst: float = float("nan")
    error: str | None = None


def score_image(model: RewardModel, image: torch.Tensor) -> tuple[float, float, float, torch.Tensor | None]:
    """Score, mean of the map, mean of its worst 1 %, and the map (1,H,W) of one image (3,H,W).

    The means are NaN and the map is None for a model without one (RM_0).

    Raises:
        FloatingPointError: the model gives a score or a map that is not finite.
    """
    out = model.score([image])
    degradation = None if out.map is None else out.map[0]
    if not (math.isfinite(out.score[0]) and (degradation is None or bool(degradation.isfinite().all()))):
        raise FloatingPointError(f"expected a finite score and map, got score {float(out.score[0])} from the model")
    if degradation is None:
        return float(out.score[0]), float("nan"), float("nan"), None
    return float(out.score[0]), float(degradation.mean()), float(worst_mean(degradation[None])[0]), degradation


def score_files(
    model: RewardModel, paths: Sequence[Path], *, maps: str | os.PathLike[str] | None = None
) -> Iterator[FileScore]:
    """Score files in order and yield each result as it is made. Holds two images: one ahead is read.

    With `maps`, an overlay of each is written there as PNG, named by `map_file_names`; a model without a map gives
    none. A file that cannot be read or scored, or whose overlay cannot be written, gives a result with `error`; the
    others go on.
    """
    names = map_file_names(paths, Path(maps)) if maps is not None else None
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(load_image, paths[0]) if paths else None
        for index, path in enumerate(paths):
            current = following
            assert current is not None
            following = reader.submit(load_image, paths[index + 1]) if index + 1 < len(paths) else None
            yield _score_one(model, path, current.result, None if names is None else names[index])


def _score_one(model: RewardModel, path: Path, read: Callable[[], torch.Tensor], target: Path | None) -> FileScore:
    try:
        image = read()
        score, mean, worst, degradation = score_image(model, image)
        if target is not None and degradation is not None:
            save_image(overlay(image, degradation), target)
    except (ImageError, FloatingPointError) as error:
        return FileScore(path, error=str(error).removeprefix(f"{path}: "))
    except (RuntimeError, MemoryError) as error:
        return FileScore(
            path, error=f"expected to score it, got {one_line(error) if str(error).strip() else 'no memory'}"
        )
    except OSError as error:
        return FileScore(path, error=f"expected to write its map, got {error.strerror or error}: {error.filename}")
    return FileScore(path, score, mean, worst)


def map_file_names(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Where the overlay of each file goes: ``scene/gt.webp`` becomes ``folder/scene__gt.map.png``.

    Names hold the folders in which the files differ, so equal file names do not meet; what would still meet
    (also on file systems that ignore case), or would overwrite one of the inputs, gets a number.
    """
    absolute = [os.path.abspath(p) for p in paths]
    common = os.path.commonpath([os.path.dirname(p) for p in absolute]) if absolute else ""
    taken = {p.casefold() for p in absolute}
    names = []
    for path in absolute:
        stem = os.path.splitext(os.path.relpath(path, common))[0].replace(os.sep, "__")
        if len(os.fsencode(stem)) > 200:  # file systems stop at 255 bytes
            stem = f"{stem[-40:]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
        name, number = folder / f"{stem}.map.png", 1
        while os.path.abspath(name).casefold() in taken:
            number += 1
            name = folder / f"{stem}-{number}.map.png"
        taken.add(os.path.abspath(name).casefold())
        names.append(name)
    return names
