"""One sample = one row of Parquet; images lossless and readable by `datasets` as image columns.

A row group holds the samples of one photo (or crop), and columns that repeat inside it (photo, results) are stored as a
dictionary: they lie in the file once, while every reader still sees them in every row.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from finpercep.data.dataset.maker import Sample
from finpercep.data.dataset.rle import encode_rle
from finpercep.io.files import atomic_write
from finpercep.io.image_files import opened
from finpercep.io.parquet import require_pyarrow

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES = ("gt", "lr", "sr", "syn", "mask", "target", "target_sr")
REPEATED = ("gt", "lr", "sr", "target_sr")
SCALARS = {
    "id": "string",  # photo|crop|source|number
    "photo": "string",
    "top": "int32",  # the part of the photo, pixels
    "left": "int32",
    "height": "int32",
    "width": "int32",
    "source": "string",
    "number": "int32",  # of the mask
    "mask_kind": "string",
    "mask_rle": "string",  # the mask before feathering, COCO RLE as JSON
    "area": "float32",  # fraction that it covers
    "feather": "float32",  # sigma of its edge, pixels
    "severity": "float32",  # mean of `target` inside the mask
    "severity_sr": "float32",  # mean of `target_sr`
    "degradation": "string",  # drawn parameters as JSON; null where no low-resolution version was made here
    "alpha": "float32",
    "normalize": "string",
    "features": "string",
    "seed": "int64",
    "source_fingerprint": "string",
    "mask_fingerprint": "string",
    "features_fingerprint": "string",
    "settings": "string",  # fingerprint of all settings
}


def schema(metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """The columns, with what `datasets` reads its features from."""
    pa = require_pyarrow()
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [(name, image) for name in IMAGES]
    fields += [(name, pa.type_for_alias(kind)) for name, kind in SCALARS.items()]
    features = {name: {"_type": "Image"} for name in IMAGES}
    features |= {name: {"dtype": kind, "_type": "Value"} for name, kind in SCALARS.items()}
    notes = {"huggingface": json.dumps({"info": {"features": features}}), **(metadata or {})}
    return pa.schema(fields, metadata=notes)


def encode(image: Tensor) -> bytes:
    """uint8 (3,H,W) as lossless WebP, (1,H,W) as PNG.

    WebP at its quickest is a third smaller than PNG on photos and quicker to write; it has no gray images, and
    ends at 16383 pixels, beyond which photos are PNG too.
    """
    from PIL import Image

    buffer = io.BytesIO()
    if image.shape[0] == 3 and max(image.shape[1:]) <= 16383:
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        picture.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    else:
        pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.contiguous().numpy()).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def rows_of(samples: Sequence[Sample], constants: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Columns of the samples of one part; each distinct image is encoded once."""
    encoded: dict[int, bytes] = {}

    def column(image: Tensor | None) -> dict[str, Any] | None:
        if image is None:
            return None
        if id(image) not in encoded:
            encoded[id(image)] = encode(image)
        return {"bytes": encoded[id(image)], "path": None}

    columns: dict[str, list[Any]] = {name: [] for name in (*IMAGES, *SCALARS)}
    for sample in samples:
        mask = sample.mask
        inside = mask.hard
        values = {
            "gt": column(sample.gt),
            "lr": column(sample.lr),
            "sr": column(sample.sr),
            "syn": column(sample.syn),
            "mask": column(mask.alpha),
            "target": column(sample.target),
            "target_sr": column(sample.target_sr),
            "id": f"{sample.photo}|{sample.region.top},{sample.region.left}|{sample.source.name}|{sample.number}",
            "photo": sample.photo,
            **sample.region._asdict(),
            "source": sample.source.name,
            "number": sample.number,
            "mask_kind": mask.kind,
            "mask_rle": json.dumps(encode_rle(mask.hard)),
            "area": mask.hard.float().mean().item(),
            "feather": mask.feather,
            "severity": sample.target[inside].float().mean().item() / 255,
            "severity_sr": sample.target_sr.float().mean().item() / 255,
            "degradation": None if sample.degradation is None else json.dumps(sample.degradation),
            "source_fingerprint": sample.source.fingerprint,
            "mask_fingerprint": mask.fingerprint,
            **constants,
        }
        for name, items in columns.items():
            items.append(values[name])
    return columns


def write_shard(path: Path, parts: Iterable[Mapping[str, Sequence[Any]]], metadata: Mapping[str, Any]) -> int:
    """Write row groups to `path`, which appears only when complete; returns the number of rows.

    `metadata` is called for at the end: values may be functions, for what is known only then.
    """
    pa = require_pyarrow()
    rows = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    repeated = [f"{name}.bytes" for name in REPEATED]
    with atomic_write(path) as file:
        with pa.parquet.ParquetWriter(
            file,
            schema(),
            compression="NONE",  # images do not compress further
            use_dictionary=repeated,
            dictionary_pagesize_limit=2**30,
            write_statistics=False,
        ) as writer:
            for columns in parts:
                table = pa.Table.from_pydict(dict(columns), schema=schema())
                writer.write_table(table, row_group_size=max(1, len(table)))
                rows += len(table)
            writer.add_key_value_metadata(
                {k: v() if callable(v) else str(v) for k, v in {**_notes(), **metadata}.items()}
            )
        file.flush()
        os.fsync(file.fileno())
    return rows


def _notes() -> dict[str, str]:
    return {"finpercep": "fgr"}


def shard_metadata(path: Path) -> dict[str, str]:
    """The key-value metadata of a shard, {} for a file that is not a whole Parquet file."""
    pa = require_pyarrow()
    try:
        found = pa.parquet.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return {}
    return {key.decode(): value.decode() for key, value in found.items() if key != b"ARROW:schema"}


def decode(cell: Mapping[str, Any]) -> Tensor:
    """An image cell back to uint8 (3,H,W) or (1,H,W), of any size.

    Raises:
        ImageError: its bytes are no image.
    """
    import numpy as np

    pixels = torch.from_numpy(np.array(opened("cell", cell["bytes"])))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
