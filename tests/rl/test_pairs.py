"""The kinds of sets that photos and low-resolution images come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from finpercep.io.images import load_image
from finpercep.io.pictures import as_picture, save_image
from finpercep.rl.pair_sets import _images_of
from finpercep.rl.photos import Crops, load_pairs, split_pairs


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
    with pytest.raises(
        ValueError, match=r"side: expected a multiple of 4 of at most 64, got 30; the smallest is .*gt.png"
    ):
        Crops(load_pairs([photo_set], "val", 4), 30)


def test_photos_alone(photo_set, tmp_path):
    """Each has one low-resolution version, by its name; one name in ten is held out."""
    photos = tmp_path / "alone"
    for number in range(40):
        save_image(as_picture(torch.full((3, 33, 34), number / 40)), photos / f"n{number}.png")
    train, val = (load_pairs([f"photos:{photos}"], split, 4) for split in ("train", "val"))
    assert len(train) + len(val) == 40
    assert 1 <= len(val) <= 10
    assert not {pair.name for pair in train} & {pair.name for pair in val}
    pair = train[0]
    assert pair.photo.shape == (3, 32, 32)
    assert pair.lr.shape == (3, 8, 8)
    again = load_pairs([f"photos:{photos}"], "train", 4)[0]
    assert torch.equal(again.lr, pair.lr)
    shutil.copy(pair.files[0], tmp_path / "other.png")
    other = load_pairs([f"photos:{tmp_path}"], "train", 4) + load_pairs([f"photos:{tmp_path}"], "val", 4)
    copied = next(one for one in other if one.files[0].name == "other.png")
    assert torch.equal(copied.photo, pair.photo)
    assert not torch.equal(copied.lr, pair.lr)
    assert (pair.lr.float().mean() - pair.photo.float().mean()).abs() < 30
    for pair in val:
        pair.files[0].unlink()
    with pytest.raises(
        ValueError, match=r"found none; --set dev_every=5 holds out every fifth photo of `train` instead"
    ):
        load_pairs([f"photos:{photos}"], "val", 4)
    index = photo_set / "index.jsonl"
    index.write_text(index.read_text().replace(', "lr": "lr.png"', ""))
    found = load_pairs([photo_set], "train", 4)
    assert [p.lr.shape for p in found] == [(3, 16, 16)] * 3


def test_photos_lose_what_is_no_multiple_of_the_scale_at_their_end(tmp_path):
    photo = torch.arange(33 * 34).view(1, 33, 34).expand(3, 33, 34) / (33 * 34)
    save_image(as_picture(photo), tmp_path / "a.png")
    pair = next(one for split in ("train", "val") for one in _found(f"photos:{tmp_path}", split))
    assert torch.equal(pair.photo, load_image(tmp_path / "a.png")[:, :32, :32])


def _found(root, split):
    try:
        return load_pairs([root], split, 4)
    except ValueError:
        return []


def test_low_resolution_images_alone(photo_set, tmp_path):
    draw = torch.Generator().manual_seed(0)
    for number in range(3):
        save_image(as_picture(torch.rand(3, 12, 14, generator=draw)), tmp_path / "lr" / f"{number}.png")
    pairs = load_pairs([f"lr:{tmp_path / 'lr'}"], "train", 4)
    batch = Crops(pairs, 32).batch(0, 6)
    assert batch.photo is None
    assert batch.lr.shape == (6, 3, 8, 8)
    whole = load_image(tmp_path / "lr" / "0.png").float() / 255
    windows = whole.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    turned = {tuple(w.flatten().tolist()) for w in (*windows, *windows.flip(-1), *windows.transpose(-1, -2))}
    assert any(tuple(lr.flatten().tolist()) in turned for lr in batch.lr)
    with pytest.raises(ValueError, match="expected photos in split 'val', found none"):
        load_pairs([f"lr:{tmp_path / 'lr'}"], "val", 4)
    both = Crops([*pairs, *load_pairs([photo_set], "train", 4)], 32, degraded=1.0)
    mixed = both.batch(0, 8)
    assert 0 < mixed.has_photo.sum() < 8
    assert [bool(photo.any()) for photo in mixed.photo] == mixed.has_photo.tolist()
    other = Crops(load_pairs([photo_set], "train", 4), 32, degraded=1.0)
    assert other.batch(0, 8).has_photo is None
    part = mixed[torch.tensor([2, 0])].repeat(2)
    assert part.has_photo.tolist() == mixed.has_photo[[2, 2, 0, 0]].tolist()
    assert len(Crops(both.pairs, 32).batch(1, 3).photo) == 3
    with pytest.raises(FileNotFoundError, match="lr:nowhere: expected a folder of images"):
        load_pairs(["lr:nowhere"], "train", 4)
    with pytest.raises(ValueError, match=r"data: expected photos besides, to measure on, such as photos:DIR, got lr:"):
        split_pairs([f"lr:{tmp_path / 'lr'}"], 4, dev_every=2)


def test_what_a_run_writes_beside_its_photos_is_none_of_them(photo_set, tmp_path, monkeypatch):
    root = tmp_path / "own"
    root.mkdir()
    for number, scene in enumerate(sorted((photo_set / "train").iterdir())):
        shutil.copy(scene / "gt.png", root / f"{number}.png")
    for number, run in enumerate(("a", "b")):
        drawn = root / "runs" / run / "pictures" / f"step-{number}.png"
        drawn.parent.mkdir(parents=True)
        shutil.copy(root / "0.png", drawn)
        (drawn.parent.parent / "rl.json").write_text("{}")
    photos = {f"{number}.png" for number in range(len(list((photo_set / "train").iterdir())))}
    assert {path.name for path in _images_of("photos", str(root))} == photos
    (root / "runs" / "a" / "rl.json").unlink()  # then they are somebody's pictures
    assert {path.name for path in _images_of("photos", str(root))} == {*photos, "step-0.png"}
    loaded = load_pairs([f"photos:{root}"], "train", 4)
    assert {Path(pair.name).name for pair in loaded} <= {*photos, "step-0.png"}
    monkeypatch.setenv("HOME", str(photo_set.parent))
    assert len(load_pairs([f"~/{photo_set.name}"], "train", 4)) == len(load_pairs([photo_set], "train", 4))


def test_a_data_set(tmp_path):
    """Photos of make_dataset, with the low-resolution versions that it stored."""
    pytest.importorskip("pyarrow")
    from finpercep.data import MakeConfig, make_dataset
    from tests.conftest import synthetic_photo

    for number in range(4):
        save_image(as_picture(synthetic_photo(64, 64, seed=number)), tmp_path / "gt" / f"p{number}.png")
        low = F.avg_pool2d(synthetic_photo(64, 64, seed=number)[None], 4)[0]
        save_image(as_picture(low), tmp_path / "low" / f"p{number}.png")
    make_dataset(
        str(tmp_path / "gt"),
        ["builtin:bicubic"],
        tmp_path / "set",
        MakeConfig(masks_per_image=1, val_share=0.25),
        lr=str(tmp_path / "low"),
    )
    pairs = load_pairs([tmp_path / "set"], "train", 4)
    batch = Crops(pairs, 32, degraded=0.0).batch(0, 4)
    assert (F.avg_pool2d(batch.photo, 4) - batch.lr).abs().max() < 1.01 / 255
    make_dataset(
        str(tmp_path / "gt"), ["builtin:bicubic"], tmp_path / "all", MakeConfig(masks_per_image=1, val_share=0)
    )
    both = load_pairs([tmp_path / "all", tmp_path / "set"], "val", 4)  # of one that has no val, none
    assert len(both) == len(load_pairs([tmp_path / "set"], "val", 4)) == 1
    with pytest.raises(ValueError, match="all: expected photos in split 'val', found none"):
        load_pairs([tmp_path / "all"], "val", 4)


def test_images_leave_memory_where_there_are_too_many(photo_set, monkeypatch):
    monkeypatch.setattr("finpercep.rl.pairs.MEMORY", 3 * 64 * 64 * 2)
    pairs = load_pairs([photo_set], "train", 4)
    first = pairs[0].photo
    assert pairs[0].photo is not first
    assert torch.equal(pairs[0].photo, first)
    monkeypatch.undo()
    pair = load_pairs([photo_set], "train", 4)[0]
    assert pair.photo is pair.photo


def test_names_that_lead_out(photo_set):
    index = photo_set / "index.jsonl"
    index.write_text(index.read_text().replace('"lr.png"', '"../../lr.png"', 1))
    with pytest.raises(ValueError, match=r"index\.jsonl:1: expected names inside"):
        load_pairs([photo_set], "train", 4)
    index.write_text('{"split": "train"\n')
    with pytest.raises(ValueError, match=r"index\.jsonl:1: expected a scene, got"):
        load_pairs([photo_set], "train", 4)


def test_lines_end_where_json_lines_do(photo_set):
    """A text may hold what Unicode, too, counts as the end of a line."""
    index = photo_set / "index.jsonl"
    lines = [{**json.loads(line), "licence": "a\u2028b\u0085c"} for line in index.read_text().splitlines()]
    index.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert len(load_pairs([photo_set], "train", 4)) == 3


def test_labelled_results(labelled):
    """Cropped and turned with their low-resolution image, which is never degraded anew."""
    crops = Crops(load_pairs([labelled], "train", 4), 32, degraded=1.0)
    found = crops.batch(0, 8)
    assert 0 < found.has_photo.sum() < 8  # of one of three it is known
    assert sorted(found.extras) == ["chosen", "rejected"]
    for name, factor in (("chosen", 0.9), ("rejected", 0.5)):
        assert (F.avg_pool2d(found.extras[name], 4) - factor * found.lr).abs().max() < 2 / 255
    assert load_pairs([labelled], "val", 4)[0].photo.shape == (3, 64, 64)


def test_labelled_results_that_do_not_fit(labelled, photo_set):
    index = labelled / "pairs.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text(lines[0].replace("rejected", "refused", 1))
    with pytest.raises(ValueError, match=r"pairs.jsonl:1: expected lr, chosen, rejected, got no rejected"):
        load_pairs([labelled], "train", 4)
    index.write_text("".join(lines))
    save_image(as_picture(torch.zeros(3, 64, 60)), labelled / "1" / "rejected.png")
    with pytest.raises(ValueError, match=r"1/lr.png, rejected: expected a photo whose sides are"):
        load_pairs([labelled], "train", 4)
    with pytest.raises(ValueError, match=r"data: expected a folder with pairs.jsonl, whose results are labelled"):
        split_pairs([str(photo_set)], 4, labelled=True)
    fit, held = split_pairs([str(photo_set)], 4)
    assert (len(fit), len(held)) == (3, 2)
