"""The pairs of each kind of set, see `load_pairs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from finpercep.data.dataset.stored import StoredScene, stored_scenes
from finpercep.data.degradations.apply import degrade
from finpercep.data.degradations.config import DegradationConfig
from finpercep.data.image_ops import to_uint8
from finpercep.data.loading import check_inside
from finpercep.data.randomness import seed_of
from finpercep.data.scenes import photo_of
from finpercep.io.files import read_text
from finpercep.io.images import expand_paths, image_sides, load_image
from finpercep.io.reasons import one_line
from finpercep.rl.pair import Images, Pair, check_scale

INDEX = "index.jsonl"
CHOICES = "pairs.jsonl"
PICTURES = "pictures"
"""Folder of a run, for what it draws."""
VAL = 10
"""Of folders of photos without splits, one photo in so many is held out, by its name."""


def of_index(root: Path, split: str, scale: int, degradation: DegradationConfig | None) -> Iterator[Pair]:
    """Photos, and low-resolution images where they are known, of the lines of index.jsonl with that split.

    A line with `shift_px` is of a camera that took low-resolution image and photo apart (`Pair.aligned`).

    Raises:
        ValueError: a line without a name that it needs, or a photo of another scale.
    """
    index = root / INDEX
    for number, row in _rows(index):
        if missing := {"split", "id", "gt"} - row.keys():
            raise ValueError(f"{index}:{number}: expected split, id and gt, got none of {sorted(missing)}")
        check_inside(index, number, [str(row[name]) for name in ("id", "gt", "lr") if row.get(name)])
        if row["split"] == split:
            folder = root / split / str(row["id"])
            lr = folder / str(row["lr"]) if row.get("lr") else None
            aligned = lr is None or "shift_px" not in row
            yield replace(_of_files(folder / str(row["gt"]), lr, scale, degradation), aligned=aligned)


def _rows(index: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and contents of each line."""
    for number, line in enumerate(read_text(index).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row.keys()
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{index}:{number}: expected a scene, got {one_line(error)}") from error
        yield number, row


def of_choices(root: Path, split: str, scale: int) -> Iterator[Pair]:
    """Labelled results: of two of one low-resolution image, which was chosen; of "val" photos to measure on.

    Raises:
        ValueError: a line without a name that it needs, or an image of another scale.
    """
    index = root / CHOICES
    rows = list(_rows(index))
    photos = {str(row["lr"]): str(row["gt"]) for _, row in rows if row.get("lr") and row.get("gt")}
    for number, row in rows:
        if (part := row.get("split", "train")) != split:
            continue
        names = ("lr", "gt") if part == "val" else ("lr", "chosen", "rejected")
        if missing := [name for name in names if not row.get(name)]:
            raise ValueError(f"{index}:{number}: expected {', '.join(names)}, got no {', '.join(missing)}")
        files = {name: str(row[name]) for name in ("lr", "gt", "chosen", "rejected") if row.get(name)}
        check_inside(index, number, list(files.values()))
        paths = {name: root / file for name, file in files.items()}
        if split == "val":
            yield _of_files(paths["gt"], paths["lr"], scale, None)
            continue
        yield _of_choice(paths, scale, root / photos.get(files["lr"], files["lr"]))


def _of_choice(paths: dict[str, Path], scale: int, of: Path) -> Pair:
    """Of files by name: lr, chosen, rejected, and gt where it is known; `of` is what its other labels share with it."""
    low = image_sides(paths["lr"])
    for name in paths.keys() - {"lr"}:
        check_scale(low, image_sides(paths[name]), scale, f"{paths['lr']}, {name}")
    results = {name: partial(load_image, paths[name]) for name in ("chosen", "rejected")}

    def read() -> Images:
        return load_image(paths["lr"]), load_image(paths["gt"]) if "gt" in paths else None

    sides, files = image_sides(paths["chosen"]), list(paths.values())
    return Pair(str(paths["lr"]), sides, read, "gt" in paths, results=results, of=str(of), files=files)


def of_photos(folder: str, split: str, scale: int, degradation: DegradationConfig | None) -> Iterator[Pair]:
    """Photos of a folder, one in `VAL` of them "val".

    Raises:
        FileNotFoundError: no folder.
    """
    for path in _images_of("photos", folder):
        if (seed_of(0, path.stem) % VAL == 0) == (split == "val"):
            yield _of_files(path, None, scale, degradation)


def of_lr(folder: str, split: str, scale: int) -> Iterator[Pair]:
    """Low-resolution images of a folder, all of them "train".

    Raises:
        FileNotFoundError: no folder.
    """
    paths = _images_of("lr", folder)
    for path in paths if split == "train" else ():
        height, width = image_sides(path)
        yield Pair(str(path), (height * scale, width * scale), partial(_alone, path), False, files=[path])


def _images_of(kind: str, folder: str) -> list[Path]:
    if not Path(folder).expanduser().is_dir():
        raise FileNotFoundError(f"{kind}:{folder}: expected a folder of images, found none")
    return [path for path in map(Path, expand_paths([folder])) if not _is_of_run(path)]


def _is_of_run(path: Path) -> bool:
    """Whether a run of reinforcement learning has drawn it: what it made is no photo."""
    return path.parent.name == PICTURES and (path.parent.parent / "rl.json").is_file()


def _alone(lr: Path) -> Images:
    return load_image(lr), None


def _of_files(photo: Path, lr: Path | None, scale: int, degradation: DegradationConfig | None) -> Pair:
    """A photo with its low-resolution version, or with one that is made."""
    height, width = image_sides(photo)
    if lr is None:
        sides = height // scale * scale, width // scale * scale

        def make() -> Images:
            return _made(load_image(photo), photo.stem, scale, degradation)

        return Pair(str(photo), sides, make, files=[photo])
    names = f"{lr}, {photo.name}"
    check_scale(image_sides(lr), (height, width), scale, names)

    def read() -> Images:
        return load_image(lr), load_image(photo)

    return Pair(names, (height, width), read, of=str(photo), files=[lr, photo])


def _sides(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _made(photo: Tensor, name: str, scale: int, degradation: DegradationConfig | None) -> Images:
    """A photo (3,H,W), uint8, cut to a multiple of the scale, and its low-resolution version, a function of `name`."""
    height, width = (side // scale * scale for side in photo.shape[1:])
    photo = photo[:, :height, :width]
    lr = degrade(photo[None].float() / 255, [seed_of(0, "lr", name)], degradation, scale=scale)[0]
    return to_uint8(lr[0]), photo


def of_stored(folder: Path, split: str, scale: int, degradation: DegradationConfig | None) -> Iterator[Pair]:
    """The scenes of a data set that `make_dataset` made."""
    return (_of_scene(scene, scale, degradation) for scene in stored_scenes(folder, split, may_be_empty=True))


def _of_scene(scene: StoredScene, scale: int, degradation: DegradationConfig | None) -> Pair:
    """Its own low-resolution version where it was stored, else one that is made."""
    name = f"{scene.gt_path}: {scene.id}"
    height, width = scene.sides

    def read() -> Images:
        gt, lr = scene.gt, scene.lr
        if lr is None:
            return _made(gt, scene.id, scale, degradation)
        check_scale(_sides(lr), _sides(gt), scale, name)
        return lr, gt

    sides = height // scale * scale, width // scale * scale
    of, place = f"{scene.gt_path}: {photo_of(scene.id)}", [scene.id, *scene.place()]
    return Pair(name, sides, read, of=of, files=[scene.gt_path], place=place)
