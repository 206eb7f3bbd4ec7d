"""Scenes: a photo (`gt`) and what super-resolution models made of its low-resolution version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from finpercep.io.images import load_image


@dataclass
class Scene:
    """One photo and its super-resolved versions; images load on first use and stay in memory as uint8 (3,H,W).

    Attributes:
        id: the scene's name.
        gt_path: the photo.
        sr_paths: source name -> super-resolved image of the same size.
    """

    id: str
    gt_path: Path
    sr_paths: dict[str, Path]
    _images: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def sources(self) -> list[str]:
        return list(self.sr_paths)

    @property
    def gt(self) -> torch.Tensor:
        """The photo, uint8 (3,H,W)."""
        return self._load("", self.gt_path)

    def sr(self, source: str) -> torch.Tensor:
        """The result of `source`, uint8 (3,H,W), of the photo's size.

        Raises:
            ValueError: its size is not the photo's.
        """
        image = self._load(source, self.sr_paths[source])
        if image.shape != self.gt.shape:
            raise ValueError(
                f"{self.sr_paths[source]}: expected {tuple(self.gt.shape)} like {self.gt_path.name}, "
                f"got {tuple(image.shape)}"
            )
        return image

    def _load(self, key: str, path: Path) -> torch.Tensor:
        if key not in self._images:
            self._images[key] = load_image(path)
        return self._images[key]


def load_scenes(root: str | Path, split: str, *, leave_out: Sequence[str] = ()) -> list[Scene]:
    """Scenes of one split of a folder with an `index.jsonl`, or of a data set that `make_dataset` made.

    Each line of the index has `split`, `id`, `gt` and `sr` (source name -> file name); the files lie in
    `<root>/<split>/<id>/`.

    Args:
        root: folder with `index.jsonl`.
        split: "train" or "val" (any name that the index uses).
        leave_out: sources to leave out, for tests on sources that training has not seen.

    Raises:
        FileNotFoundError: no index.
        ValueError: a line that cannot be read, an unknown source in `leave_out`, or no scene in the split.
    """
    from finpercep.data.dataset.stored import is_stored, stored_scenes

    if is_stored(root):
        return list(stored_scenes(root, split, leave_out=leave_out))
    index = Path(root) / "index.jsonl"
    if not index.is_file():
        raise FileNotFoundError(
            f"{index}: not found; expected a data set that make-dataset made, or a folder with index.jsonl"
        )
    scenes, known = [], set()
    for number, line in enumerate(index.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            known.update(row["sr"])
            if row["split"] != split:
                continue
            folder = index.parent / split / row["id"]
            sr_paths = {name: folder / file for name, file in row["sr"].items() if name not in leave_out}
            scenes.append(Scene(row["id"], folder / row["gt"], sr_paths))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}:{number}: expected a scene (split, id, gt, sr), got {error!r}") from error
    unknown = set(leave_out) - known
    if unknown:
        raise ValueError(f"leave_out: {sorted(unknown)} not among the sources {sorted(known)}")
    if not scenes:
        raise ValueError(f"{index}: no scene in split {split!r}")
    return scenes


def split_dev(scenes: Sequence[Scene], every: int) -> tuple[list[Scene], list[Scene]]:
    """(fit, dev): every n-th scene is dev, so that a recipe can be chosen without looking at `val`; 0 means none."""
    dev = list(scenes[every - 1 :: every]) if every else []
    held = {scene.id for scene in dev}
    return [scene for scene in scenes if scene.id not in held], dev
