"""The images of a run, known by their files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import torch

from finpercep.io.pictures import as_picture, save_image
from finpercep.rl.pairs_fingerprint import pairs_fingerprint
from finpercep.rl.photos import load_pairs


def test_data_are_known_by_their_files_wherever_they_lie(photo_set, labelled, tmp_path):
    roots = [photo_set, labelled, f"photos:{photo_set / 'train'}", f"lr:{labelled}"]
    before = pairs_fingerprint(load_pairs(roots, "train", 4))
    moved = tmp_path / "elsewhere"
    for folder in (photo_set, labelled):
        shutil.move(folder, moved / folder.name)
    photos, labels = moved / photo_set.name, moved / labelled.name
    roots = [photos, labels, f"photos:{photos / 'train'}", f"lr:{labels}"]
    assert pairs_fingerprint(load_pairs(roots, "train", 4)) == before
    save_image(as_picture(torch.rand(3, 64, 64)), photos / "train" / "p1" / "gt.png")
    assert pairs_fingerprint(load_pairs(roots, "train", 4)) != before
    row = json.loads((labels / "pairs.jsonl").read_text().splitlines()[0])
    changed = pairs_fingerprint(load_pairs([labels], "train", 4))
    save_image(as_picture(torch.rand(3, 64, 64)), labels / row["rejected"])
    assert pairs_fingerprint(load_pairs([labels], "train", 4)) != changed


def test_pairs_that_a_camera_moved_are_other_data(camera_set):
    """`shift_px` is in the index, which is no file of a pair."""
    pairs = load_pairs([camera_set], "train", 4)
    aligned = [replace(pair, aligned=True) for pair in pairs]
    assert pairs_fingerprint(pairs) != pairs_fingerprint(aligned)
