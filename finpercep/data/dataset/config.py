"""What decides the bytes of a data set, and how two such settings differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from finpercep.data.degradations.degradations import DegradationConfig
from finpercep.data.features.encoders import check_features
from finpercep.data.masks.kinds import parse_masks
from finpercep.data.targets import ALPHA, SCALE
from finpercep.ops.degradation_target import NORMALIZATIONS

FORMAT = 1  # of the rows; raised when a reader of the older one would misread them


@dataclass(frozen=True)
class MakeConfig:
    """How samples are made of photos and their super-resolved versions.

    Attributes:
        seed: of every random decision.
        masks: kinds to draw from, see `mask_kinds.parse_masks`.
        masks_per_image: samples per photo (or crop) and source.
        area: range of the fraction that a mask covers.
        feathered, feather: share of masks with a blurred edge, and the range of its sigma in pixels.
        features: see `encoders.open_features`.
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

    seed: int = 0
    masks: tuple[str, ...] = ("random",)
    masks_per_image: int = 4
    area: tuple[float, float] = (0.03, 0.4)
    feathered: float = 0.25
    feather: tuple[float, float] = (1.0, 5.0)
    features: str = "filters"
    alpha: float = ALPHA
    normalize: str = "scale"
    target_scale: float = SCALE
    restrict: bool = False
    scale: int = 4
    crop: int = 0
    crops: int = 1
    val_share: float = 0.1
    photos_per_shard: int = 8
    skip_bad: bool = False
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    tile: int = 256
    steps: int = 50
    points_per_side: int = 32

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
