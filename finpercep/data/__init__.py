"""FGR data: scenes, masks, region swap and degradation targets (design: I_syn = mask·I_SR + (1-mask)·I_GT)."""

from finpercep.data.features.filter_bank import FilterBank
from finpercep.data.masks.simple import random_blobs, random_boxes, region_swap
from finpercep.data.scenes import Scene, load_scenes
from finpercep.data.sources.synthetic import SYNTHETIC_SOURCES, jpeg, resize, synthetic_source
from finpercep.data.targets import fault_target

__all__ = [
    "SYNTHETIC_SOURCES",
    "FilterBank",
    "Scene",
    "fault_target",
    "jpeg",
    "load_scenes",
    "random_blobs",
    "random_boxes",
    "region_swap",
    "resize",
    "synthetic_source",
]
