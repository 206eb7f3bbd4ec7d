"""From a folder of your own photos to a trained reward model: data set, RM_0, full model, figures.

    python examples/photos_to_model.py [PHOTOS [OUT]]

The settings are those of a test that ends in seconds, and the model is a toy. For a real one take the defaults of
`MakeConfig` and `RewardTrainConfig`, hundreds of photos, and results of the models whose faults it is to find.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from finpercep import RewardModel
from finpercep.data import MakeConfig, TripletConfig, load_scenes, make_dataset
from finpercep.data.demo_photos import load_photo
from finpercep.evaluation import evaluate_all, reward_judge
from finpercep.io.pictures import as_picture, save_image
from finpercep.training import RewardTrainConfig, train

SOURCES = ["builtin:smooth", "builtin:grain"]  # built-in faults; your own: folder:NAME=DIR, spandrel:FILE, …


def main(photos: Path, out: Path, steps: int = 4) -> None:
    data = out / "fgr"
    make_dataset(str(photos), SOURCES, data, MakeConfig(masks_per_image=2, photos_per_shard=2, val_share=0.25))

    common: dict[str, Any] = {
        "data": str(data),
        "steps": steps,
        "batch": 2,
        "lr_encoder": 2e-3,
        "lr_new": 2e-3,
        "warmup": 2,
        "workers": 0,
        "encoder": {"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True},
        "triplets": TripletConfig(crop=64),
    }
    train(RewardTrainConfig(out=str(out / "rm0"), **common))  # RM_0: the score alone
    train(RewardTrainConfig(out=str(out / "rm1"), anchor=str(out / "rm0"), **common))  # the full model

    model = RewardModel.from_pretrained(out / "rm1")
    figures = evaluate_all({"rm1": reward_judge(model)}, load_scenes(data, "val"))[0].overall
    shown = {name: figures[name] for name in ("pairs", "gt_over_sr", "syn_over_sr", "gt_over_syn", "cc", "auc")}
    print(", ".join(f"{name} {value:.3g}" for name, value in shown.items() if value is not None))
    print(f"model: {out / 'rm1'}, fingerprint {model.fingerprint}")


def demo_photos(folder: Path) -> Path:
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        save_image(as_picture(load_photo(name)[:, 60:156, 120:216]), folder / f"{name}.png")
    return folder


if __name__ == "__main__":
    scratch = Path(tempfile.mkdtemp(prefix="finpercep-"))
    photos = Path(sys.argv[1]) if len(sys.argv) > 1 else demo_photos(scratch / "photos")
    main(photos, Path(sys.argv[2]) if len(sys.argv) > 2 else scratch)
