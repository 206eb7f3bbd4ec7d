"""A small data set of a few photos, made in a second or two."""

import json
from pathlib import Path

from finpercep.data.dataset.config import MakeConfig
from finpercep.data.dataset.hashes import HASHES
from finpercep.data.dataset.make import make_dataset
from tests.data.conftest import write_scenes

CONFIG = MakeConfig(masks_per_image=2, photos_per_shard=2, val_share=0.2)


def inputs(root: Path, count=5, **options):
    """`gt` and `sr` arguments over scenes written to `root`."""
    folder = write_scenes(root, count, size=(48, 56), **options) / "train"
    return f"{folder}/*/gt.png", [
        f"folder:a={folder}/*/a.png",
        f"folder:b={folder}/*/b.png",
        "builtin:bicubic",
    ]


def make(root: Path, out: Path, config=CONFIG, **options):
    """Make (or go on with) the data set of the scenes in `root`."""
    if not (root / "index.jsonl").is_file():
        inputs(root)
    folder = root / "train"
    sources = [f"folder:a={folder}/*/a.png", f"folder:b={folder}/*/b.png", "builtin:bicubic"]
    return make_dataset(f"{folder}/*/gt.png", sources, out, config, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a data set's folder, but for the record of times and inodes."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != HASHES)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def rows(folder: Path):
    """All rows, as plain dicts."""
    import pyarrow.parquet as pq

    files = [entry["file"] for entry in json.loads((folder / "manifest.json").read_text())["files"]]
    return [row for file in files for row in pq.read_table(folder / file).to_pylist()]
