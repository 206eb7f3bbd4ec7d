"""The end of the demo: the embedded generator climbs a reward that grows, and what that does to photos it never saw."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from torch import Tensor

from finpercep.data.demo_photos import load_photo
from finpercep.data.image_ops import resize
from finpercep.io.files import atomic_write
from finpercep.io.pictures import as_picture, save_image
from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.generators.tiny import SCALE
from finpercep.rl.loop import train
from finpercep.rl.refl import ReFLConfig
from finpercep.rl.report import report_parts
from finpercep.rl.screen import RLScreen

__all__ = ["STEPS", "check_folder", "climb"]

STEPS = 45
"""Updates of the generator: under two minutes on two cores."""
LR = 2e-4
FIT = ("astronaut", "coffee", "motorcycle", "camera")
HELD = ("chelsea", "rocket")
MADE = ("photos", "run")
MARK = "made-by-finpercep-demo"
"""A file in each folder that a demo made, which the next one may delete."""
_SIDE = 128  # of the pieces of held-out photos


def check_folder(folder: Path) -> None:
    """Refuse what no demo made where `climb` would make its own.

    Raises:
        FileExistsError: names it.
    """
    for place in (folder / name for name in MADE):
        empty = place.is_dir() and not any(place.iterdir())
        if os.path.lexists(place) and not empty and not (place / MARK).is_file():
            raise FileExistsError(f"{place}: expected nothing, or a folder that a demo made, got another")


def climb(folder: Path, steps: int) -> str:
    """Train the embedded generator, and say what came of it.

    Args:
        folder: its `photos` and `run` are made anew, where a demo made them; what else is in it stays.
        steps: updates in all, divided among the stages.

    Returns:
        HTML: measures, curves, and pictures before and after.

    Raises:
        ImportError: scikit-image is not installed.
        FileExistsError: `photos` or `run` are there, and no demo made them.
        OSError: `folder` cannot be written to.
    """
    check_folder(folder)
    for place in (folder / name for name in MADE):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / MARK).touch()
    write_photo_set(folder / "photos")
    config = RLConfig(
        data=(str(folder / "photos"),),
        out=str(folder / "run"),
        algorithm=ReFLConfig(weight=2.5),
        stages=stages(steps),
        eval_every=max(1, steps // 6),
        save_every=steps,
        eval_photos=8,
        degraded=0.0,
        keep=1,
    )
    train(config, [RLScreen()])
    names = ", then ".join(stage.reward for stage in config.stages)
    intro = (
        f"<h2>A generator that climbs it</h2>\n<p>{steps} updates of the embedded ×4 generator by ReFL against "
        f"{names}, on four of these photos; measured on pieces of two others. So few updates show that the loop works; "
        "the documentation says what longer runs do.</p>\n"
    )
    return f'<section class="climb">{intro}{"".join(report_parts(folder / "run"))}</section>'


def stages(steps: int) -> tuple[StageConfig, ...]:
    """RM_0, RM_1 and RM_2 of the embedded model, a third of the updates each; a stage without updates is left out."""
    third = steps // 3
    lengths = enumerate((third, third, steps - 2 * third))
    return tuple(StageConfig(f"finpercep-tiny/{stage}", length, LR) for stage, length in lengths if length)


def write_photo_set(folder: Path) -> None:
    """The demo's photos as a set with index.jsonl: some to train on, pieces of the others to measure on."""
    lines = [_written(folder, "train", name, load_photo(name)) for name in FIT]
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for name in HELD:
            photo = load_photo(name)
            top, left = (
                round((0.25 + 0.5 * at) * (n - _SIDE)) for at, n in zip((row, column), photo.shape[1:], strict=True)
            )
            piece = photo[:, top : top + _SIDE, left : left + _SIDE]
            lines.append(_written(folder, "val", f"{name}-{row}{column}", piece))
    with atomic_write(folder / "index.jsonl") as file:
        file.write("".join(lines).encode())


def _written(folder: Path, split: str, name: str, photo: Tensor) -> str:
    """A photo and its quarter, as files; its line of the index."""
    height, width = (side // SCALE * SCALE for side in photo.shape[1:])
    photo = photo[:, :height, :width]
    place = folder / split / name
    save_image(as_picture(photo), place / "gt.png")
    save_image(as_picture(resize(photo, (height // SCALE, width // SCALE))), place / "lr.png")
    return json.dumps({"split": split, "id": name, "gt": "gt.png", "lr": "lr.png"}) + "\n"
