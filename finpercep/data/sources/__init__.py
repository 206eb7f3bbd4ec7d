"""Sources of super-resolved images: folders, models, and faults that need no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.data.sources.autoencoder import AutoencoderSource
    from finpercep.data.sources.builtin import BicubicSource, BuiltinSource
    from finpercep.data.sources.diffusers_pipeline import DiffusersSource
    from finpercep.data.sources.folder import FolderSource
    from finpercep.data.sources.kinds import SOURCE_KINDS, SourceSpec, open_source, parse_source, parse_sources
    from finpercep.data.sources.ncnn_model import NcnnSource
    from finpercep.data.sources.protocol import Photo, Region, Source, SourceInput
    from finpercep.data.sources.spandrel_model import SpandrelSource
    from finpercep.data.sources.synthetic import SYNTHETIC_SOURCES, synthetic_source
    from finpercep.data.sources.tiles import run_tiled

__all__ = [
    "SOURCE_KINDS",
    "SYNTHETIC_SOURCES",
    "AutoencoderSource",
    "BicubicSource",
    "BuiltinSource",
    "DiffusersSource",
    "FolderSource",
    "NcnnSource",
    "Photo",
    "Region",
    "Source",
    "SourceInput",
    "SourceSpec",
    "SpandrelSource",
    "open_source",
    "parse_source",
    "parse_sources",
    "run_tiled",
    "synthetic_source",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AutoencoderSource": "finpercep.data.sources.autoencoder",
        "BicubicSource": "finpercep.data.sources.builtin",
        "BuiltinSource": "finpercep.data.sources.builtin",
        "DiffusersSource": "finpercep.data.sources.diffusers_pipeline",
        "FolderSource": "finpercep.data.sources.folder",
        "NcnnSource": "finpercep.data.sources.ncnn_model",
        "Photo": "finpercep.data.sources.protocol",
        "Region": "finpercep.data.sources.protocol",
        "SOURCE_KINDS": "finpercep.data.sources.kinds",
        "SYNTHETIC_SOURCES": "finpercep.data.sources.synthetic",
        "Source": "finpercep.data.sources.protocol",
        "SourceInput": "finpercep.data.sources.protocol",
        "SourceSpec": "finpercep.data.sources.kinds",
        "SpandrelSource": "finpercep.data.sources.spandrel_model",
        "open_source": "finpercep.data.sources.kinds",
        "parse_source": "finpercep.data.sources.kinds",
        "parse_sources": "finpercep.data.sources.kinds",
        "run_tiled": "finpercep.data.sources.tiles",
        "synthetic_source": "finpercep.data.sources.synthetic",
    },
)
