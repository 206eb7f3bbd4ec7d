"""Batches of crops: low-resolution images, and the photos behind them where they are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from finpercep.data.degradations.apply import degrade
from finpercep.data.degradations.config import DegradationConfig
from finpercep.data.randomness import integer, seed_of, seeded, uniform
from finpercep.data.scenes import spread
from finpercep.rl.batch import Batch
from finpercep.rl.pair import Pair
from finpercep.rl.pairs import load_pairs

__all__ = ["Crops", "Pair", "load_pairs", "split_pairs"]

PHOTO = "gt"


class Crops:
    """Batches of square crops, each a function of the seed and its number alone.

    Where a pair brings latents of its low-resolution image, the crop is the whole image as it is. Where some pairs have
    no photo, batches say which rows have one (`Batch.has_photo`). Results that all pairs bring are cropped with the
    photo, into the batch's extras.

    Args:
        pairs: the photos and low-resolution images.
        side: of the crops of photos, in pixels, a multiple of `scale`.
        scale: of the generator.
        degraded: share of the crops of photos whose low-resolution version is made on the fly by `degrade` instead of
            being the set's own.
        degradation: options of `degrade`.
        seed: of crops, flips and degradations.
        prompt: of all images, see `Batch`.

    Raises:
        ValueError: a side that is no multiple of the scale, or larger than a photo, or another than that of an image
            with latents.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        side: int,
        *,
        scale: int = 4,
        degraded: float = 0.5,
        degradation: DegradationConfig | None = None,
        seed: int = 0,
        prompt: str = "",
    ) -> None:
        smallest = min(pairs, key=lambda pair: min(pair.sides))
        if side % scale or not 0 < side <= min(smallest.sides):
            raise ValueError(
                f"side: expected a multiple of {scale} of at most {min(smallest.sides)}, got {side}; "
                f"the smallest is {smallest.name}"
            )
        for pair in pairs:
            if pair.fixed and pair.sides != (side, side):
                height, width = pair.sides
                raise ValueError(
                    f"side: expected {height} x {width} as {pair.name}, whose latents are given, got {side}"
                )
        self.pairs, self.side, self.scale, self.degraded, self.seed = pairs, side, scale, degraded, seed
        self.degradation, self.prompt = degradation, prompt
        having = [pair.has_photo for pair in pairs]
        self.photos, self.mixed = any(having), any(having) and not all(having)
        self.extras = sorted(set.intersection(*(set(pair.extras) for pair in pairs)))
        self.results = sorted(set.intersection(*(set(pair.results) for pair in pairs)))

    def batch(self, number: int, size: int) -> Batch:
        """The batch of that number, of `size` crops: lr (B,3,h,w) and photo (B,3,side,side), float in [0, 1], and ids.

        Raises:
            ValueError: an image that cannot be read, or an extra that is no tensor.
        """
        numbers = range(number * size, (number + 1) * size)
        pairs = [self._pair(i) for i in numbers]
        crops = [self._crop(pair, i) for pair, i in zip(pairs, numbers, strict=True)]
        lr = _stacked([lr for lr, _ in crops])
        made = [at for at, (pair, i) in enumerate(zip(pairs, numbers, strict=True)) if self._is_degraded(pair, i)]
        if made:
            photos = _stacked([crops[at][1][PHOTO] for at in made])
            seeds = [seed_of(self.seed, "degrade", numbers[at]) for at in made]
            lr[made] = degrade(photos, seeds, self.degradation, scale=self.scale)[0]
        none = torch.zeros(3, self.side, self.side, dtype=torch.uint8)
        photo = _stacked([large.get(PHOTO, none) for _, large in crops]) if self.photos else None
        has_photo = torch.tensor([pair.has_photo for pair in pairs]) if self.mixed else None
        extras = {name: torch.stack([pair.extras[name]() for pair in pairs]) for name in self.extras}
        extras |= {name: _stacked([large[name] for _, large in crops]) for name in self.results}
        aligned = [pair.aligned or at in made for at, pair in enumerate(pairs)]
        unaligned = None if all(aligned) else torch.tensor(aligned)
        return Batch(lr, torch.tensor(list(numbers)), photo, extras, has_photo, self.prompt, unaligned)

    def names(self, numbers: Iterable[int]) -> set[str]:
        """Of the pairs that the crops of those numbers are cut from."""
        return {self._pair(number).name for number in numbers}

    def _is_degraded(self, pair: Pair, index: int) -> bool:
        share = uniform(0, 1, seeded(self.seed, "own", index))
        return share < self.degraded and pair.has_photo and not pair.fixed and not pair.results

    def _pair(self, index: int) -> Pair:
        return self.pairs[integer(0, len(self.pairs) - 1, seeded(self.seed, "crop", index))]

    def _crop(self, pair: Pair, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Low-resolution image (3,h,w), and by name the photo and results (3,H,W), uint8."""
        lr, photo = pair.images()
        large = {} if photo is None else {PHOTO: photo}
        large |= {name: pair.results[name]() for name in self.results}
        if pair.fixed:
            return lr, large
        draw = seeded(self.seed, "crop", index)
        integer(0, len(self.pairs) - 1, draw)  # which pair it is
        low = self.side // self.scale
        top = integer(0, lr.shape[1] - low, draw)
        left = integer(0, lr.shape[2] - low, draw)
        rows, columns = top * self.scale, left * self.scale
        lr = lr[:, top : top + low, left : left + low]
        large = {n: image[:, rows : rows + self.side, columns : columns + self.side] for n, image in large.items()}
        for turn in (_mirrored, _transposed):
            if integer(0, 1, draw):
                lr, large = turn(lr), {name: turn(image) for name, image in large.items()}
        return lr, large


def split_pairs(
    roots: Sequence[str],
    scale: int,
    *,
    dev_every: int = 0,
    held: int = 16,
    labelled: bool = False,
    degradation: DegradationConfig | None = None,
) -> tuple[list[Pair], list[Pair]]:
    """Photos to train on, and a selection of `held` of those that are held out, see `RLConfig`.

    With `labelled` only pairs with results of theirs, chosen and rejected, are trained on. `degradation`: see
    `load_pairs`.

    Raises:
        ValueError: no folder, no photo to hold out, or nothing labelled; see `load_pairs`.
    """
    if not roots:
        raise ValueError("data: expected at least one folder, got none")
    if all(str(root).startswith("lr:") for root in roots):
        raise ValueError(
            f"data: expected photos besides, to measure on, such as photos:DIR, got {', '.join(roots)} alone"
        )
    fit = load_pairs(roots, "train", scale, degradation=degradation)
    if dev_every:
        names = list(dict.fromkeys(pair.of for pair in fit if pair.has_photo))
        held_names = set(names[dev_every - 1 :: dev_every])
        if not held_names:
            raise ValueError(f"dev_every: expected at most the {len(names)} photos there are, got {dev_every}")
        out = [pair for pair in fit if pair.of in held_names and pair.has_photo]
        fit = [pair for pair in fit if pair.of not in held_names]
    else:
        out = load_pairs(roots, "val", scale, degradation=degradation)
    out = list({pair.name: pair for pair in out}.values())  # labels of one image are one image
    if labelled:
        fit = [pair for pair in fit if pair.results]
        if not fit:
            raise ValueError(
                f"data: expected a folder with pairs.jsonl, whose results are labelled, got {', '.join(roots)}"
            )
    return fit, spread(out, held)


def _stacked(images: list[Tensor]) -> Tensor:
    return torch.stack(images).float() / 255


def _mirrored(image: Tensor) -> Tensor:
    return image.flip(-1)


def _transposed(image: Tensor) -> Tensor:
    return image.transpose(-1, -2)
