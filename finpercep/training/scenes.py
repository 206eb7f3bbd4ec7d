"""The scenes of a training run: what is trained on, what is held out, and how long an epoch is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from finpercep.data.dataset.stored import StoredScene
from finpercep.data.loading import load_scenes
from finpercep.data.scenes import Scene, split_dev
from finpercep.training.config import RewardTrainConfig

NAMED = 5
"""Photos that a message names, at most."""


def training_scenes(config: RewardTrainConfig) -> tuple[list[Scene], list[Scene]]:
    """The scenes of all folders that are trained on, and those that `dev_every` holds out.

    Scenes all of whose sources are left out are left out, too, where results are needed.

    Raises:
        ValueError: a source to leave out that none of the folders has, or one to have more of that no scene to fit has;
            no scene to train on; photos that are smaller than the crop; and see `load_scenes`.
    """
    known = {folder: _sources(load_scenes(folder, "train")) for folder in config.folders}
    unknown = set(config.leave_out).difference(*known.values())
    if unknown:
        every = sorted(set().union(*known.values()))
        raise ValueError(f"leave_out: expected some of the sources {every}, got {sorted(unknown)}")
    fit: list[Scene] = []
    dev: list[Scene] = []
    for folder, sources in known.items():
        found = load_scenes(folder, "train", leave_out=[name for name in config.leave_out if name in sources])
        parts: tuple[list[Scene], ...] = split_dev(found, config.dev_every)
        if config.leave_out and config.triplets.synthetic < 1:
            parts = tuple([scene for scene in part if scene.sources] for part in parts)
        fit, dev = fit + parts[0], dev + parts[1]
    if not fit:
        raise ValueError(
            f"data: expected scenes of train to fit, got none ({len(dev)} held out by dev_every={config.dev_every})"
        )
    _check_sizes(fit, config.triplets.crop)
    return fit + _more(fit, config.more), dev


def _check_sizes(scenes: Sequence[Scene], crop: int) -> None:
    """Before the first step: a small photo would end the run when it is drawn.

    Raises:
        ValueError: photos that are smaller than the crop; names some of them.
    """
    small = [(scene, *scene.sides) for scene in scenes if min(scene.sides) < crop]
    if not small:
        return
    named = [f"{scene.id if scene.place() else scene.gt_path} ({width}x{height})" for scene, height, width in small]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    raise ValueError(
        f"crop: expected at most the shorter side of every photo, got {crop} for {', '.join(named[:NAMED])}{more}"
    )


def _more(scenes: Sequence[Scene], wanted: Sequence[str]) -> list[Scene]:
    """Scenes once more, with one result each, as "SOURCE=N" asks for.

    Raises:
        ValueError: none of the scenes has such a source, or no number of at least 1.
    """
    found: list[Scene] = []
    for text in wanted:
        source, _, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise ValueError(f"more: expected SOURCE=N with N of at least 1, got {text!r}")
        again = [scene.only(source) for scene in scenes if source in scene.sources]
        if not again:
            raise ValueError(
                f"more: expected a source of the scenes to fit, {sorted(_sources(scenes))}, got {source!r}"
            )
        found += again * int(number)
    return found


def with_steps(config: RewardTrainConfig, scenes: Sequence[Scene]) -> RewardTrainConfig:
    """The settings with the steps that `epochs` come to; each pair of photo and result, or stored sample, counts."""
    if config.epochs is None:
        return config
    return replace(config, steps=math.ceil(config.epochs * sum(map(_samples, scenes)) / config.batch))


def _samples(scene: Scene) -> int:
    rows = scene.rows.values() if isinstance(scene, StoredScene) else [[name] for name in scene.sources]
    return max(1, sum(map(len, rows)))


def _sources(scenes: Sequence[Scene]) -> set[str]:
    return {source for scene in scenes for source in scene.sources}
