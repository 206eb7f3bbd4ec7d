"""A small set of photos with low-resolution versions."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from finpercep.io.pictures import as_picture, save_image


class Kill:
    """A monitor that ends a run after a step, as a lost process would."""

    def __init__(self, at=3):
        self.at = at

    def start(self, *args, **kwargs): ...
    def close(self): ...
    def log(self, step, figures):
        if step == self.at:
            raise KeyError("killed")


@pytest.fixture
def photo_set(tmp_path):
    """A folder with index.jsonl: three photos to train on and two to hold out."""
    draw, root, lines = torch.Generator().manual_seed(0), tmp_path / "photos", []
    for number in range(5):
        split = "train" if number < 3 else "val"
        coarse = torch.rand(1, 3, 8, 8, generator=draw)
        photo = F.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)
        folder = root / split / f"p{number}"
        save_image(as_picture(photo[0]), folder / "gt.png")
        save_image(as_picture(F.avg_pool2d(photo, 4)[0]), folder / "lr.png")
        lines.append(json.dumps({"split": split, "id": f"p{number}", "gt": "gt.png", "lr": "lr.png", "sr": {}}))
    (root / "index.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def camera_set(photo_set):
    """The same, but that a camera took the first photo of each split apart from its low-resolution image."""
    index = photo_set / "index.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    rows = [{**row, "shift_px": 0.4} if row["id"] in ("p0", "p3") else row for row in rows]
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return photo_set


@pytest.fixture
def labelled(tmp_path):
    """Three low-resolution images with a chosen and a rejected result, and one photo to measure on."""
    draw, root, rows = torch.Generator().manual_seed(1), tmp_path / "labelled", []
    for number in range(4):
        photo = F.interpolate(torch.rand(1, 3, 8, 8, generator=draw), (64, 64), mode="bicubic").clamp(0, 1)[0]
        images = {"lr": F.avg_pool2d(photo, 4), "chosen": 0.9 * photo, "rejected": 0.5 * photo, "gt": photo}
        row = {name: f"{number}/{name}.png" for name in images if name != "gt" or number > 1}
        for name, file in row.items():
            save_image(as_picture(images[name]), root / file)
        rows.append({**row, "split": "val"} if number == 3 else row)
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(autouse=True)
def one_thread():
    """These tensors are too small to share: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
