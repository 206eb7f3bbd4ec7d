"""Scenes on disk, small and synthetic."""

import json
from pathlib import Path

from PIL import Image

from finpercep.data.sources.synthetic import smooth
from tests.conftest import synthetic_photo


def write_scenes(root: Path, count: int, *, split="train", size=(64, 72), sources=("a", "b")) -> Path:
    """`count` scenes with distinct photos; each source is the photo blurred through its own seed."""
    import torch

    def save(image, path):
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(path)

    rows = []
    for number in range(count):
        folder = root / split / f"scene{number}"
        folder.mkdir(parents=True)
        photo = synthetic_photo(*size, seed=number)
        save(photo, folder / "gt.png")
        for seed, source in enumerate(sources):
            save(smooth(photo, torch.Generator().manual_seed(seed)), folder / f"{source}.png")
        names = {source: f"{source}.png" for source in sources}
        rows.append({"split": split, "id": folder.name, "gt": "gt.png", "sr": names})
    with (root / "index.jsonl").open("a") as index:
        index.writelines(json.dumps(row) + "\n" for row in rows)
    return root
