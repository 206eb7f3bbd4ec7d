"""Data sets of samples with local faults: made by `make_dataset`, read as scenes or rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.data.dataset.config import MakeConfig
    from finpercep.data.dataset.make import MadeDataset, make_dataset
    from finpercep.data.dataset.pairs import find_images, match_photos
    from finpercep.data.dataset.rle import decode_rle, encode_rle
    from finpercep.data.dataset.stored import StoredScene, row_sample, stored_scenes

__all__ = [
    "MadeDataset",
    "MakeConfig",
    "StoredScene",
    "decode_rle",
    "encode_rle",
    "find_images",
    "make_dataset",
    "match_photos",
    "row_sample",
    "stored_scenes",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "MadeDataset": "finpercep.data.dataset.make",
        "MakeConfig": "finpercep.data.dataset.config",
        "StoredScene": "finpercep.data.dataset.stored",
        "decode_rle": "finpercep.data.dataset.rle",
        "encode_rle": "finpercep.data.dataset.rle",
        "find_images": "finpercep.data.dataset.pairs",
        "make_dataset": "finpercep.data.dataset.make",
        "match_photos": "finpercep.data.dataset.pairs",
        "row_sample": "finpercep.data.dataset.stored",
        "stored_scenes": "finpercep.data.dataset.stored",
    },
)
