"""Trials of the evaluation: for each scene its photo, and per source the SR result, the photo with implanted faults,
the true map of those faults and the swap mask.

Faults are drawn from (seed, scene, source) only, so every model is shown the same ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finpercep.data import FilterBank, Scene, fault_target, jpeg, random_boxes, region_swap, resize

SHIFTS = ("none", "jpeg75", "resize0.7")
"""What "all" means: the photos as they are, recompressed, and shrunk."""


@dataclass(frozen=True)
class Trial:
    """One scene after the shift; images float in [0, 1].

    Attributes:
        photo: S_GT's image (3,H,W).
        restored, implanted: the images of S_SR and S_syn, one (3,H,W) per source.
        targets: M_gt (H,W) of each implanted image; masks: its swap mask (H,W) in {0, 1}.
    """

    scene: str
    sources: list[str]
    photo: Tensor
    restored: list[Tensor]
    implanted: list[Tensor]
    targets: list[Tensor]
    masks: list[Tensor]


def iterate_trials(
    scenes: Sequence[Scene], *, seed: int = 0, faults: tuple[int, int] = (1, 3), shift: str = "none"
) -> Iterator[Trial]:
    """Yield a trial per scene, in order.

    M_gt is computed before the shift, from the pixels as they were; a resize takes map and mask with it.

    Args:
        faults: fewest and most boxes swapped into a photo.
        shift: "none", "jpegQ" (recompressed at quality Q, 1–95) or "resizeF" (both sides × F, 0.1–2).

    Raises:
        ValueError: unknown shift, bad `faults`, no scenes, or a scene without sources.
    """
    kind, amount = parse_shift(shift)
    if not 1 <= faults[0] <= faults[1]:
        raise ValueError(f"faults: expected (fewest, most) with 1 <= fewest <= most, got {faults}")
    if not scenes:
        raise ValueError("scenes: expected at least one, got none")
    for scene in scenes:
        if not scene.sources:
            raise ValueError(f"scene {scene.id}: expected at least one SR source, got none")
    bank = FilterBank()
    return (_trial(scene, bank, seed, faults, kind, amount) for scene in scenes)


def parse_shift(shift: str) -> tuple[str, float]:
    """("none", 0), ("jpeg", quality) or ("resize", factor)."""
    match = re.fullmatch(r"none|jpeg(\d{1,2})|resize(\d*\.?\d+)", shift)
    if match is None:
        raise ValueError(f"shift: expected none, jpegQ or resizeF (jpeg75, resize0.7), got {shift!r}")
    if shift == "none":
        return "none", 0.0
    kind, amount, low, high = ("jpeg", float(match[1]), 1, 95) if match[1] else ("resize", float(match[2]), 0.1, 2)
    if not low <= amount <= high:
        raise ValueError(f"shift: expected {kind} from {low} to {high}, got {amount:g}")
    return kind, amount


def trial_seed(seed: int, scene: str, source: str) -> int:
    """A seed of 63 bits from the three, the same on every machine and in every order."""
    digest = hashlib.blake2b(f"{seed}\0{scene}\0{source}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@torch.no_grad()
def _trial(scene: Scene, bank: FilterBank, seed: int, faults: tuple[int, int], kind: str, amount: float) -> Trial:
    photo = scene.gt.float() / 255
    height, width = photo.shape[-2:]
    masks = [
        random_boxes(height, width, torch.Generator().manual_seed(trial_seed(seed, scene.id, source)), count=faults)
        for source in scene.sources
    ]
    restored = [scene.sr(source).float() / 255 for source in scene.sources]
    implanted = [region_swap(photo, image, mask.bool()) for image, mask in zip(restored, masks, strict=True)]
    batch = torch.stack(implanted)
    targets = fault_target(photo[None], batch, bank, aligned=scene.aligned)
    return Trial(
        scene.id,
        scene.sources,
        _shift_image(photo, kind, amount),
        [_shift_image(image, kind, amount) for image in restored],
        [_shift_image(image, kind, amount) for image in implanted],
        [_shift_map(target, kind, amount)[0] for target in targets],
        [(_shift_map(mask, kind, amount)[0] > 0.5).float() for mask in masks],
    )


def _shift_image(image: Tensor, kind: str, amount: float) -> Tensor:
    if kind == "jpeg":
        return jpeg(image, int(amount))
    if kind == "resize":  # rounded: a shrunk photo is stored in 8 bits like any other
        return resize(image, _scaled(image, amount)).mul(255).round() / 255
    return image


def _shift_map(values: Tensor, kind: str, amount: float) -> Tensor:
    return resize(values, _scaled(values, amount), "bilinear") if kind == "resize" else values


def _scaled(image: Tensor, factor: float) -> tuple[int, int]:
    return max(1, round(image.shape[-2] * factor)), max(1, round(image.shape[-1] * factor))
