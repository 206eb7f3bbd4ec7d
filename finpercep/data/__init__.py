"""FGR data: scenes, masks, region swap and degradation targets (I_syn = mask·I_SR + (1-mask)·I_GT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.data import dataset, degradations, features, masks, sources
    from finpercep.data.dataset.config import MakeConfig
    from finpercep.data.dataset.make import make_dataset
    from finpercep.data.degradations.apply import degrade
    from finpercep.data.degradations.config import DegradationConfig
    from finpercep.data.degradations.random_jpeg import RandomJPEG
    from finpercep.data.features.filter_bank import FilterBank
    from finpercep.data.identity import scenes_fingerprint
    from finpercep.data.image_ops import gaussian_blur, jpeg, resize
    from finpercep.data.loading import load_scenes
    from finpercep.data.masks.simple import random_blobs, random_boxes
    from finpercep.data.packing import pack
    from finpercep.data.scenes import Scene, split_dev
    from finpercep.data.sources.synthetic import SYNTHETIC_SOURCES, synthetic_source
    from finpercep.data.swap import region_swap
    from finpercep.data.targets import fault_target, fuse_target
    from finpercep.data.triplets import Triplet, TripletConfig, Triplets

__all__ = [
    "SYNTHETIC_SOURCES",
    "DegradationConfig",
    "FilterBank",
    "MakeConfig",
    "RandomJPEG",
    "Scene",
    "Triplet",
    "TripletConfig",
    "Triplets",
    "dataset",
    "degradations",
    "degrade",
    "fault_target",
    "features",
    "fuse_target",
    "gaussian_blur",
    "jpeg",
    "load_scenes",
    "make_dataset",
    "masks",
    "pack",
    "random_blobs",
    "random_boxes",
    "region_swap",
    "resize",
    "scenes_fingerprint",
    "sources",
    "split_dev",
    "synthetic_source",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "DegradationConfig": "finpercep.data.degradations.config",
        "FilterBank": "finpercep.data.features.filter_bank",
        "MakeConfig": "finpercep.data.dataset.config",
        "RandomJPEG": "finpercep.data.degradations.random_jpeg",
        "SYNTHETIC_SOURCES": "finpercep.data.sources.synthetic",
        "Scene": "finpercep.data.scenes",
        "Triplet": "finpercep.data.triplets",
        "TripletConfig": "finpercep.data.triplets",
        "Triplets": "finpercep.data.triplets",
        "dataset": "finpercep.data.dataset",
        "degradations": "finpercep.data.degradations",
        "degrade": "finpercep.data.degradations.apply",
        "fault_target": "finpercep.data.targets",
        "features": "finpercep.data.features",
        "fuse_target": "finpercep.data.targets",
        "gaussian_blur": "finpercep.data.image_ops",
        "jpeg": "finpercep.data.image_ops",
        "load_scenes": "finpercep.data.loading",
        "make_dataset": "finpercep.data.dataset.make",
        "masks": "finpercep.data.masks",
        "pack": "finpercep.data.packing",
        "random_blobs": "finpercep.data.masks.simple",
        "random_boxes": "finpercep.data.masks.simple",
        "region_swap": "finpercep.data.swap",
        "resize": "finpercep.data.image_ops",
        "scenes_fingerprint": "finpercep.data.identity",
        "sources": "finpercep.data.sources",
        "split_dev": "finpercep.data.scenes",
        "synthetic_source": "finpercep.data.sources.synthetic",
    },
)
