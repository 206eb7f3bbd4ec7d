"""What decides the bytes of a data set, and how two such settings differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from finpercep.data.degradations.config import DegradationConfig
from finpercep.data.features.kinds import FEATURE_KINDS, check_features
from finpercep.data.kinds import one_of, usages
from finpercep.data.masks.kinds import MASK_KINDS, parse_masks
from finpercep.data.masks.maker import AREA, FEATHER, FEATHERED
from finpercep.data.targets import ALPHA, NORMALIZE, SCALE
from finpercep.ops.degradation_target import NORMALIZATIONS


def _option(default: Any, help: str, **more: Any) -> Any:
    """A field that is an option on the command line: its help, and where they differ from the usual, `option` (its
    name) and `min` (the least number that is allowed)."""
    return field(default=default, metadata={"help": help, **more})


FORMAT = 1  # of the rows; raised when a reader of the older one would misread them


@dataclass(frozen=True)
class MakeConfig:
    """How samples are made of photos and their super-resolved versions.

    Attributes:
        seed: of every random decision.
        masks: kinds to draw from, see `masks.kinds.parse_masks`.
        masks_per_image: samples per photo (or crop) and source.
        area: range of the fraction that a mask covers.
        feathered, feather: share of masks with a blurred edge, and the range of its sigma in pixels.
        features: see `features.kinds.open_features`.
        alpha, normalize, target_scale: of `ops.degradation_target`. [open in the paper] A fixed scale keeps severity
            comparable between images.
        restrict: set the target to 0 where the mask is 0; features see a fault from as far as they reach.
        scale: between low and high resolution, for sources that need a low-resolution version.
        crop, crops: side and number of random crops per photo, multiples of `scale`; 0 takes photos whole.
        val_share: share of photos that go to the split "validation".
        photos_per_shard: photos in a file; what a kill loses at most, per worker.
        skip_bad: leave out results that cannot be read or do not fit, instead of stopping there.
        degradation: how the low-resolution versions are made.
        tile, steps: tile side of models in low-resolution pixels, denoising steps of diffusers pipelines.
        points_per_side: SAM's grid of prompts.
    """

    seed: int = _option(0, "Seed for everything that is drawn at random.")
    masks: tuple[str, ...] = _option(
        ("random",), f"Kind of mask: {usages(MASK_KINDS)}. Several kinds are drawn equally often.", option="--mask"
    )
    masks_per_image: int = _option(
        4, "Number of masks, and so of samples, per photo and source.", option="--masks", min=1
    )
    area: tuple[float, float] = _option(AREA, "Smallest and largest share of the image that a mask covers.")
    feathered: float = _option(FEATHERED, "Share of masks with a soft edge.")
    feather: tuple[float, float] = FEATHER
    features: str = _option("filters", f"Features that the target compares: {usages(FEATURE_KINDS)}.")
    alpha: float = _option(ALPHA, "Weight of the pixel difference in the target; the features get the rest.")
    normalize: str = _option(NORMALIZE, f"Normalization of the target: {one_of(NORMALIZATIONS)}.")
    target_scale: float = _option(SCALE, "Difference that counts as fully degraded, for --normalize scale.")
    restrict: bool = _option(False, "Set the target to 0 outside the mask.")
    scale: int = _option(4, "Scale factor of the super-resolution models.", min=1)
    crop: int = _option(0, "Side of random crops, in pixels; 0 takes whole photos.", min=0)
    crops: int = _option(1, "Crops per photo.", min=1)
    val_share: float = _option(0.1, "Share of photos held out for validation.")
    photos_per_shard: int = _option(8, "Photos per file.", min=1)
    skip_bad: bool = _option(False, "Skip images that are missing, damaged or of the wrong size, instead of stopping.")
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    tile: int = _option(
        256, "Side of the tiles that models work on, in low-resolution pixels; 0 turns tiling off.", min=0
    )
    steps: int = _option(50, "Sampling steps of diffusers pipelines.", min=1)
    points_per_side: int = _option(32, "Points per side of the grid that prompts SAM.", option="--sam-points", min=1)

    def __post_init__(self) -> None:
        parse_masks(self.masks)
        check_features(self.features)
        checks = {
            "area": (0 < self.area[0] <= self.area[1] < 1, "0 < low <= high < 1", self.area),
            "alpha": (0 <= self.alpha <= 1, "a weight in [0, 1]", self.alpha),
            "normalize": (self.normalize in NORMALIZATIONS, f"one of {NORMALIZATIONS}", self.normalize),
            "target_scale": (self.target_scale > 0, "> 0", self.target_scale),
            "feathered": (0 <= self.feathered <= 1, "a share in [0, 1]", self.feathered),
            "feather": (0 < self.feather[0] <= self.feather[1], "0 < low <= high", self.feather),
            "masks_per_image": (self.masks_per_image > 0, "at least 1", self.masks_per_image),
            "scale": (self.scale >= 1, "at least 1", self.scale),
            "crop": (
                self.crop >= 0 and self.crop % self.scale == 0,
                f"a multiple of the scale {self.scale}",
                self.crop,
            ),
            "crops": (
                self.crops == 1 or (self.crop > 0 and self.crops > 0),
                "1 where photos are whole",
                self.crops,
            ),
            "val_share": (0 <= self.val_share < 1, "a share in [0, 1)", self.val_share),
            "photos_per_shard": (self.photos_per_shard > 0, "at least 1", self.photos_per_shard),
        }
        for name, (fine, expected, value) in checks.items():
            if not fine:
                raise ValueError(f"{name}: expected {expected}, got {value}")


def settings_of(
    config: MakeConfig,
    *,
    sources: Mapping[str, str],
    masks: Sequence[tuple[str, str]],
    features: str,
    photos: int,
    listing: str,
) -> dict[str, Any]:
    """Everything that decides the bytes, as plain types: what `settings.json` holds.

    Args:
        sources, masks, features: fingerprints, by name.
        photos, listing: number of photos and `pairs.listing_hash` of the inputs.
    """
    settings = {
        "format": FORMAT,
        # Leaving out what is bad does not change what is good: a run that stopped there may go on with it.
        "config": {name: value for name, value in asdict(config).items() if name != "skip_bad"},
        "sources": dict(sources),
        "mask_fingerprints": [f"{name}:{fingerprint}" for name, fingerprint in masks],
        "features_fingerprint": features,
        "photos": photos,
        "inputs": listing,
    }
    return json.loads(json.dumps(settings))


def settings_hash(settings: Mapping[str, Any]) -> str:
    """The fingerprint that every shard carries."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def settings_difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line "name: was … now …" for each setting that differs."""
    lines = []
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += settings_difference(before, now, f"{prefix}{name}.")
        elif before != now:
            lines.append(f"{prefix}{name}: was {before!r}, now {now!r}")
    return lines
