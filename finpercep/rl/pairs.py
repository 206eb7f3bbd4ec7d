"""Photos and low-resolution images of six kinds of sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from finpercep.data.dataset.stored import is_stored
from finpercep.data.degradations.config import DegradationConfig
from finpercep.rl.pair import Pair
from finpercep.rl.pair_sets import CHOICES, INDEX, of_choices, of_index, of_lr, of_photos, of_stored
from finpercep.rl.precomputed import is_precomputed, of_precomputed

MEMORY = 2**31
"""Images stay in memory where all of them together are no larger, in bytes."""
ALONE = ("photos", "lr")
"""Kinds that are written before a folder and a colon."""


def load_pairs(
    roots: Sequence[str | Path],
    split: str,
    scale: int,
    *,
    degradation: DegradationConfig | None = None,
) -> list[Pair]:
    """The images of sets, in one list.

    - a folder with an `index.jsonl` whose lines have split, id, gt and, if they are known, lr: `<root>/<split>/<id>/`;
    - a data set that `make_dataset` made;
    - a folder with a `pairs.jsonl` whose lines have lr, chosen and rejected, files in the folder, and gt where it is
      known; those with split "val" need lr and gt;
    - a folder as DiT4SR's training has it: sr_bicubic, prompt_embeds, pooled_prompt_embeds, latent_lr, and gt where it
      is known; all of it is `train`;
    - ``photos:DIR``: photos, of which one in ten is `val`, by its name; not the pictures of a run that wrote there;
    - ``lr:DIR``: low-resolution images without photos, all of them `train`.

    Photos without a low-resolution version get one by `degrade`, seeded by their name.

    Args:
        roots: the sets.
        split: "train" or "val".
        scale: how many times larger a photo is than its low-resolution image.
        degradation: options of `degrade`.

    Raises:
        FileNotFoundError: no such folder, or none of these kinds.
        ValueError: a line without one of the names, a pair that does not match, or nothing in that split.
    """
    pairs = []
    for root in map(str, roots):
        kind, colon, rest = root.partition(":")
        for pair in _pairs(root, split, scale, degradation):
            pair.root = Path(rest if colon and kind in ALONE else root).expanduser()
            pairs.append(pair)
    if not pairs:
        instead = "; --set dev_every=5 holds out every fifth photo of `train` instead" if split == "val" else ""
        raise ValueError(f"{', '.join(map(str, roots))}: expected photos in split {split!r}, found none{instead}")
    if sum(3 * height * width for height, width in (pair.sides for pair in pairs)) > MEMORY:
        for pair in pairs:
            pair.keep = False
    return pairs


def _pairs(root: str, split: str, scale: int, degradation: DegradationConfig | None) -> Iterator[Pair]:
    kind, colon, rest = root.partition(":")
    if colon and kind == "photos":
        return of_photos(rest, split, scale, degradation)
    if colon and kind == "lr":
        return of_lr(rest, split, scale)
    folder = Path(root).expanduser()
    if is_stored(folder):
        return of_stored(folder, split, scale, degradation)
    if (folder / CHOICES).is_file():
        return of_choices(folder, split, scale)
    if is_precomputed(folder):
        return of_precomputed(folder, scale) if split == "train" else iter(())
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"{folder / INDEX}: not found; expected a folder with index.jsonl, one with pairs.jsonl, a data "
            "set that make-dataset made, photos:DIR or lr:DIR"
        )
    return of_index(folder, split, scale, degradation)
