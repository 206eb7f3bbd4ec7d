"""Photos and their low-resolution versions: that they match, and that crops are functions of seed and number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finpercep.io.pictures import as_picture, save_image
from finpercep.rl.batch import Batch
from finpercep.rl.photos import Crops, load_pairs


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


def test_degradation_on_the_fly(photo_set):
    pairs = load_pairs([photo_set], "train", 4)
    own, made, mixed = (Crops(pairs, 32, degraded=share).batch(0, 8) for share in (0.0, 1.0, 0.5))
    changed = [not torch.equal(a, b) for a, b in zip(own.lr, made.lr, strict=True)]
    assert all(changed)
    took = [torch.equal(a, b) for a, b in zip(mixed.lr, made.lr, strict=True)]
    assert 0 < sum(took) < 8
    assert torch.equal(mixed.photo, own.photo)


def test_pairs_that_do_not_match(photo_set, tmp_path):
    save_image(as_picture(torch.zeros(3, 15, 16)), photo_set / "train" / "p1" / "lr.png")
    with pytest.raises(ValueError, match=r"p1/lr.png, gt.png: expected a photo whose sides are"):
        load_pairs([photo_set], "train", 4)
    save_image(as_picture(torch.zeros(3, 32, 32)), photo_set / "train" / "p1" / "lr.png")
    with pytest.raises(ValueError, match=r"p1/lr.png: expected a photo 4 times larger, got 2 times"):
        load_pairs([photo_set], "train", 4)
    with pytest.raises(ValueError, match="expected photos in split 'test', found none"):
        load_pairs([photo_set], "test", 4)
    with pytest.raises(FileNotFoundError, match=r"index\.jsonl: not found"):
        load_pairs([tmp_path / "nowhere"], "train", 4)
    with pytest.raises(ValueError, match="side: expected a multiple of 4 of at most 64, got 30"):
        Crops(load_pairs([photo_set], "val", 4), 30)


def test_batches():
    lr, ids = torch.zeros(2, 3, 4, 4), torch.tensor([5, 6])
    with pytest.raises(ValueError, match="same whole multiple"):
        Batch(lr, ids, torch.zeros(2, 3, 16, 12))
    with pytest.raises(ValueError, match=r"ids: expected \(2,\)"):
        Batch(lr, ids[:1])
    with pytest.raises(ValueError, match=r"lr: expected \(B,3,h,w\)"):
        Batch(lr[0], ids)
    assert Batch(lr, ids).repeat(2).ids.tolist() == [5, 5, 6, 6]
