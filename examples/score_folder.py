"""Score every image of a folder, worst first, and draw the map of each over it.

    python examples/score_folder.py FOLDER [MAPS]

Without arguments it scores a folder that it makes: a photo of scikit-image and three naive reconstructions of it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import finpercep
from finpercep.data import synthetic_source
from finpercep.data.demo_photos import load_photo
from finpercep.engine.files import score_files
from finpercep.io.images import expand_paths
from finpercep.io.pictures import as_picture, save_image


def make_folder() -> Path:
    """A folder with a photo and what three ways of enlarging a smaller copy make of it."""
    folder = Path(tempfile.mkdtemp(prefix="finpercep-"))
    photo = load_photo("astronaut")[:, :256, :256]
    save_image(as_picture(photo), folder / "photo.png")
    for name in ("smooth", "oversharp", "painterly"):
        restored = synthetic_source(name, photo, torch.Generator().manual_seed(0))
        save_image(as_picture(restored), folder / f"{name}.png")
    return folder


def main(folder: Path, maps: Path) -> None:
    model = finpercep.RewardModel.from_pretrained("finpercep-tiny")
    results = list(score_files(model, expand_paths([folder]), maps=maps))
    for result in sorted((r for r in results if r.error is None), key=lambda r: r.score):
        print(f"{result.score:.3f}  worst 1 %: {result.map_worst:.3f}  {result.path}")
    for result in results:
        if result.error is not None:
            print(f"{result.path}: {result.error}", file=sys.stderr)
    print(f"maps: {maps}")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else make_folder()
    main(folder, Path(sys.argv[2]) if len(sys.argv) > 2 else folder.with_name(f"{folder.name}-maps"))
