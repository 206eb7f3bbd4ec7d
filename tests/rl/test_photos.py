"""Photos and their low-resolution versions: that they match, and that crops are functions of seed and number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from finpercep.data import DegradationConfig, degrade
from finpercep.data.randomness import seed_of
from finpercep.io.images import load_image
from finpercep.io.pictures import as_picture, save_image
from finpercep.rl.batch import Batch
from finpercep.rl.photos import Crops, load_pairs, split_pairs


def test_crops_match(photo_set):
    """The set's own low-resolution images: 4×4 means of the photos, flipped and turned with them."""
    crops = Crops(load_pairs([photo_set], "train", 4), 32, degraded=0.0)
    batch = crops.batch(2, 3)
    assert batch.ids.tolist() == [6, 7, 8]
    assert (F.avg_pool2d(batch.photo, 4) - batch.lr).abs().max() < 1.01 / 255
    again = crops.batch(2, 3)
    assert torch.equal(batch.photo, again.photo)
    single = crops.batch(7, 1)
    assert torch.equal(single.photo[0], batch.photo[1])


def test_crops_are_mirrored_and_transposed(photo_set):
    """Whole images: four orientations, and no other."""
    crops = Crops(load_pairs([photo_set], "train", 4)[:1], 64, degraded=0.0)
    photo = load_image(photo_set / "train" / "p0" / "gt.png")
    seen = {tuple((255 * image).round().flatten().tolist()) for image in crops.batch(0, 40).photo}
    turned = (photo, photo.flip(-1), photo.transpose(-1, -2), photo.flip(-1).transpose(-1, -2))
    assert seen == {tuple(image.float().flatten().tolist()) for image in turned}


def test_degradation_on_the_fly(photo_set):
    pairs = load_pairs([photo_set], "train", 4)
    own, made, mixed = (Crops(pairs, 32, degraded=share).batch(0, 8) for share in (0.0, 1.0, 0.5))
    changed = [not torch.equal(a, b) for a, b in zip(own.lr, made.lr, strict=True)]
    assert all(changed)
    took = [torch.equal(a, b) for a, b in zip(mixed.lr, made.lr, strict=True)]
    assert 0 < sum(took) < 8
    assert torch.equal(mixed.photo, own.photo)


def test_which_rows_a_camera_moved(camera_set):
    """Those of its pair but where the low-resolution version is made of the photo."""
    pairs = load_pairs([camera_set], "train", 4)
    assert [pair.aligned for pair in pairs] == [False, True, True]
    crops = Crops(pairs, 32, degraded=0.5)
    batch = crops.batch(0, 24)
    of_camera = [not crops._pair(i).aligned for i in range(24)]
    made = [crops._is_degraded(crops._pair(i), i) for i in range(24)]
    assert len({*zip(of_camera, made, strict=True)}) == 4
    assert batch.aligned.tolist() == [not camera or own for camera, own in zip(of_camera, made, strict=True)]
    twice = batch.repeat(2)
    assert twice.aligned.tolist() == batch.aligned.repeat_interleave(2).tolist()
    assert batch[5:9].aligned.tolist() == batch.aligned[5:9].tolist()
    assert batch[torch.tensor([3, 0])].to(torch.device("cpu")).aligned.tolist() == batch.aligned[[3, 0]].tolist()
    assert Crops(pairs, 32, degraded=1.0).batch(0, 8).aligned is None
    assert Crops(pairs[1:], 32, degraded=0.0).batch(0, 8).aligned is None


MILD = DegradationConfig(resize_prob=(0.0, 0.0, 1.0), noise_range=(0.0, 1.0), jpeg_range=(90.0, 95.0))


def test_options_of_the_degradation(photo_set):
    pairs = load_pairs([photo_set], "train", 4)
    batch = Crops(pairs, 32, degraded=1.0, degradation=MILD, seed=3).batch(1, 2)
    expected = degrade(batch.photo, [seed_of(3, "degrade", i) for i in (2, 3)], MILD)[0]
    assert torch.equal(batch.lr, expected)
    assert not torch.equal(batch.lr, Crops(pairs, 32, degraded=1.0, seed=3).batch(1, 2).lr)


def test_options_of_the_degradation_of_photos_alone(photo_set):
    """Held out or not, what has no low-resolution version gets one by them."""
    root = f"photos:{photo_set / 'train' / 'p0'}"
    fit, held = split_pairs([root], 4, dev_every=2, degradation=MILD)
    for pair in (*fit, *held):
        lr, photo = pair.images()
        name = Path(pair.files[0]).stem
        expected = degrade(photo[None].float() / 255, [seed_of(0, "lr", name)], MILD)[0]
        assert torch.equal(lr, (255 * expected[0]).round().to(torch.uint8))


def test_batches():
    lr, ids = torch.zeros(2, 3, 4, 4), torch.tensor([5, 6])
    with pytest.raises(ValueError, match="same whole multiple"):
        Batch(lr, ids, torch.zeros(2, 3, 16, 12))
    with pytest.raises(ValueError, match=r"ids: expected \(2,\)"):
        Batch(lr, ids[:1])
    with pytest.raises(ValueError, match=r"lr: expected \(B,3,h,w\)"):
        Batch(lr[0], ids)
    assert Batch(lr, ids).repeat(2).ids.tolist() == [5, 5, 6, 6]


def test_a_held_out_photo_is_not_trained_on_in_any_form(labelled, photo_set, tmp_path):
    """Other labels of its low-resolution image, and low-resolution images without a photo, which nobody holds out."""
    rows = [json.loads(line) for line in (labelled / "pairs.jsonl").read_text().splitlines()]
    rows = [{**row, "split": "train"} for row in rows if "gt" in row]
    twice = [row for row in rows for _ in range(2)]
    for row in twice:
        row.setdefault("chosen", row["gt"])
        row.setdefault("rejected", row["gt"])
    (labelled / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twice))
    alone = tmp_path / "alone"
    alone.mkdir()
    save_image(as_picture(torch.rand(3, 16, 16)), alone / "a.png")
    roots = [str(labelled), f"lr:{alone}"]
    fit, out = split_pairs(roots, 4, dev_every=2)
    assert len(out) == 1  # the second photo, whose labels are two
    assert {pair.of for pair in out}.isdisjoint(pair.of for pair in fit)
    assert [pair.has_photo for pair in fit] == [True, True, False]
    assert all(pair.has_photo for pair in out)


def test_low_resolution_images_of_one_photo_are_held_out_together(labelled):
    """Two versions of each photo, and labels of one of them without the photo's name."""
    rows = [json.loads(line) for line in (labelled / "pairs.jsonl").read_text().splitlines()]
    rows = [{**row, "split": "train", "chosen": row["gt"], "rejected": row["gt"]} for row in rows if "gt" in row]
    found = []
    for row in rows:
        other = row["lr"].replace("lr.png", "other.png")
        (labelled / other).write_bytes((labelled / row["lr"]).read_bytes())
        found += [row, {**row, "lr": other}, {name: row[name] for name in ("lr", "chosen", "rejected")}]
    (labelled / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    fit, out = split_pairs([str(labelled)], 4, dev_every=2)
    photos = [{pair.name.split("/")[-2] for pair in part} for part in (fit, out)]
    assert photos == [{"2"}, {"3"}]
    assert (len(fit), len(out)) == (3, 2)  # without a photo, nothing can be measured
