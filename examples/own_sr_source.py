"""Training data with the faults of your own super-resolution model.

    python examples/own_sr_source.py [PHOTOS [OUT]]

The model here is a stand-in, `my_model`. Its results are written as files beside each other, named like the photos, and
`make_dataset` takes them from there. Without PHOTOS it uses three photos of scikit-image.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from finpercep.data import MakeConfig, TripletConfig, Triplets, degrade, load_scenes, make_dataset
from finpercep.data.demo_photos import load_photo
from finpercep.io.images import expand_paths, load_image
from finpercep.io.pictures import as_picture, save_image

SCALE = 4


def my_model(low: Tensor) -> Tensor:
    """Your model: low-resolution images (B,3,h,w) in [0, 1] to results (B,3,4h,4w). This one sharpens too hard."""
    enlarged = interpolate(low, scale_factor=SCALE, mode="bicubic")
    soft = interpolate(interpolate(enlarged, scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear")
    return (enlarged + 2 * (enlarged - soft)).clamp(0, 1)


def write_results(photos: Path, results: Path) -> None:
    """A result of `my_model` for each photo, from a low-resolution version as they are found in the wild."""
    for number, path in enumerate(expand_paths([photos])):
        photo = load_image(path)[None].float() / 255
        height, width = (side // SCALE * SCALE for side in photo.shape[-2:])
        low, _ = degrade(photo[..., :height, :width], seeds=[number], scale=SCALE)
        save_image(as_picture(my_model(low)[0]), results / f"{path.stem}.png")


def main(photos: Path, out: Path) -> None:
    results = out.with_name(f"{out.name}-results")
    write_results(photos, results)
    config = MakeConfig(masks_per_image=2, photos_per_shard=1, scale=SCALE)
    made = make_dataset(str(photos), [f"folder:mine={results}"], out, config)
    rows = sum(entry["rows"] for entry in made.manifest["files"])
    print(f"{rows} samples in {made.folder}; look at {made.folder / 'preview.html'}")

    triplets = Triplets(load_scenes(out, "train"), TripletConfig(crop=64))
    triplet = triplets[0]
    print(f"one triplet: crops {tuple(triplet.gt.shape)}, mean of M_gt {float(triplet.target_syn.mean()):.3f}")


def demo_photos(folder: Path) -> Path:
    for name in ("astronaut", "chelsea", "coffee"):
        save_image(as_picture(load_photo(name)[:, 60:188, 120:248]), folder / f"{name}.png")
    return folder


if __name__ == "__main__":
    torch.manual_seed(0)
    scratch = Path(tempfile.mkdtemp(prefix="finpercep-"))
    photos = Path(sys.argv[1]) if len(sys.argv) > 1 else demo_photos(scratch / "photos")
    main(photos, Path(sys.argv[2]) if len(sys.argv) > 2 else scratch / "fgr")
