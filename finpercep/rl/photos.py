"""Photos with low-resolution versions of them: the set's own, or made on the fly by the degradation pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finpercep.data.degradations.apply import degrade
from finpercep.data.randomness import integer, seed_of, seeded, uniform
from finpercep.io.images import load_image
from finpercep.rl.batch import Batch, check_pair


@dataclass(frozen=True)
class Pair:
    """A photo, uint8 (3,H,W), and the set's low-resolution version of it, uint8 (3,h,w)."""

    photo: Tensor
    lr: Tensor


def load_pairs(roots: Sequence[str | Path], split: str, scale: int) -> list[Pair]:
    """Photos and low-resolution images of folders with an `index.jsonl` whose lines have split, id, gt and lr.

    Args:
        roots: the folders; images lie in `<root>/<split>/<id>/`.
        split: "train" or "val".
        scale: how many times larger a photo is than its low-resolution image.

    Raises:
        FileNotFoundError: no index.
        ValueError: a line without one of the names, a pair that does not match, or nothing in that split.
    """
    pairs = []
    for root in roots:
        index = Path(root) / "index.jsonl"
        if not index.is_file():
            raise FileNotFoundError(f"{index}: not found; expected a folder with index.jsonl")
        for number, line in enumerate(index.read_text().splitlines(), 1):
            row = json.loads(line)
            if missing := {"split", "id", "gt", "lr"} - row.keys():
                raise ValueError(f"{index}:{number}: expected split, id, gt and lr, got none of {sorted(missing)}")
            if row["split"] == split:
                pairs.append(_load(Path(root) / split / row["id"], row, scale))
    if not pairs:
        raise ValueError(f"{', '.join(map(str, roots))}: expected photos in split {split!r}, found none")
    return pairs


def _load(folder: Path, row: dict[str, str], scale: int) -> Pair:
    photo, lr = load_image(folder / row["gt"]), load_image(folder / row["lr"])
    found = check_pair(lr, photo, names=f"{folder / row['lr']}, {row['gt']}")
    if found != scale:
        raise ValueError(f"{folder / row['lr']}: expected a photo {scale} times larger, got {found} times")
    return Pair(photo, lr)


class Crops:
    """Batches of square crops, each a function of the seed and its number alone.

    Args:
        pairs: the photos.
        side: of the crops of photos, in pixels, a multiple of `scale`.
        scale: of the generator.
        degraded: share of the crops whose low-resolution version is made on the fly by `degrade` instead of being the
            set's own.
        seed: of crops, flips and degradations.

    Raises:
        ValueError: a side that is no multiple of the scale, or larger than a photo.
    """

    def __init__(
        self, pairs: Sequence[Pair], side: int, *, scale: int = 4, degraded: float = 0.5, seed: int = 0
    ) -> None:
        smallest = min(min(pair.photo.shape[1:]) for pair in pairs)
        if side % scale or not 0 < side <= smallest:
            raise ValueError(f"side: expected a multiple of {scale} of at most {smallest}, got {side}")
        self.pairs, self.side, self.scale, self.degraded, self.seed = pairs, side, scale, degraded, seed

    def batch(self, number: int, size: int) -> Batch:
        """The batch of that number: photos and low-resolution images in [0, 1], and ids."""
        crops = [self._crop(number * size + i) for i in range(size)]
        photo = torch.stack([photo for photo, _, _ in crops]).float() / 255
        lr = torch.stack([lr for _, lr, _ in crops]).float() / 255
        made = [i for i in range(size) if uniform(0, 1, seeded(self.seed, "own", number * size + i)) < self.degraded]
        if made:
            seeds = [seed_of(self.seed, "degrade", number * size + i) for i in made]
            lr[made] = degrade(photo[made], seeds, scale=self.scale)[0]
        return Batch(lr, torch.tensor([index for _, _, index in crops]), photo)

    def _crop(self, index: int) -> tuple[Tensor, Tensor, int]:
        draw = seeded(self.seed, "crop", index)
        pair = self.pairs[integer(0, len(self.pairs) - 1, draw)]
        low = self.side // self.scale
        top = integer(0, pair.lr.shape[1] - low, draw)
        left = integer(0, pair.lr.shape[2] - low, draw)
        lr = pair.lr[:, top : top + low, left : left + low]
        rows, columns = top * self.scale, left * self.scale
        photo = pair.photo[:, rows : rows + self.side, columns : columns + self.side]
        if integer(0, 1, draw):
            lr, photo = lr.flip(-1), photo.flip(-1)
        if integer(0, 1, draw):
            lr, photo = lr.transpose(-1, -2), photo.transpose(-1, -2)
        return photo, lr, index
