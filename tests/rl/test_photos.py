"""Photos and their low-resolution versions: that they match, and that crops are functions of seed and number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

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


def test_batches():
    lr, ids = torch.zeros(2, 3, 4, 4), torch.tensor([5, 6])
    with pytest.raises(ValueError, match="same whole multiple"):
        Batch(lr, ids, torch.zeros(2, 3, 16, 12))
    with pytest.raises(ValueError, match=r"ids: expected \(2,\)"):
        Batch(lr, ids[:1])
    with pytest.raises(ValueError, match=r"lr: expected \(B,3,h,w\)"):
        Batch(lr[0], ids)
    assert Batch(lr, ids).repeat(2).ids.tolist() == [5, 5, 6, 6]


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
    other = load_pairs([f"photos:{tmp_path}"], "train", 4, apart=photos) + load_pairs([f"photos:{tmp_path}"], "val", 4)
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
    for number, scene in enumerate(sorted((photo_set / "train").iterdir())):
        shutil.copy(scene / "gt.png", tmp_path / f"{number}.png")
    (tmp_path / "runs" / "rl").mkdir(parents=True)
    shutil.copy(tmp_path / "0.png", tmp_path / "runs" / "rl" / "made.png")
    names = [Path(p.name).name for p in load_pairs([f"photos:{tmp_path}"], "train", 4, apart=tmp_path / "runs" / "rl")]
    assert "made.png" not in names
    assert "0.png" in names
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


class Touch:
    """What makes a folder where it is read by pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


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


def test_latents_and_texts_computed_beforehand(tmp_path):
    """A folder as DiT4SR's training has it: whole images, each with its own tensors."""
    draw = torch.Generator().manual_seed(0)
    for folder in ("latent_lr", "prompt_embeds", "pooled_prompt_embeds"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        large = F.interpolate(torch.rand(1, 3, 4, 4, generator=draw), (32, 32), mode="bicubic").clamp(0, 1)[0]
        save_image(as_picture(large), tmp_path / "sr_bicubic" / f"{number}.png")
        save_image(as_picture(large), tmp_path / "gt" / f"{number}.png")
        torch.save(torch.full((1, 4, 4, 4), float(number)), tmp_path / "latent_lr" / f"{number}.pt")
        torch.save(torch.full((1, 5, 6), float(number)), tmp_path / "prompt_embeds" / f"{number}.pt")
        torch.save(torch.full((1, 7), float(number)), tmp_path / "pooled_prompt_embeds" / f"{number}.pt")
    torch.save(torch.zeros(1, 5, 6), tmp_path / "prompt_embeds" / "NULL_prompt_embeds.pt")
    pairs = load_pairs([tmp_path], "train", 4)
    batch = Crops(pairs, 32, degraded=1.0).batch(0, 8)
    which = batch.extras["latent_lr"][:, 0, 0, 0]
    assert len(which.unique()) > 1
    assert torch.equal(batch.extras["prompt_embeds"], which.view(-1, 1, 1).expand(-1, 5, 6))
    assert torch.equal(batch.extras["pooled_prompt_embeds"], which.view(-1, 1).expand(-1, 7))
    for image, number in zip(batch.photo, which.tolist(), strict=True):
        assert torch.equal(image, load_image(tmp_path / "gt" / f"{number:.0f}.png").float() / 255)
    assert (F.avg_pool2d(batch.photo, 4) - batch.lr).abs().max() < 0.1
    # An image without embeddings has those of the empty text, or is named.
    (tmp_path / "prompt_embeds" / "1.pt").unlink()
    found = Crops(load_pairs([tmp_path], "train", 4), 32).batch(0, 8)
    expected = torch.where(which == 1, 0.0, which)
    assert torch.equal(found.extras["prompt_embeds"], expected.view(-1, 1, 1).expand(-1, 5, 6))
    (tmp_path / "pooled_prompt_embeds" / "1.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.pt: expected an embedding, .*NULL_pooled_prompt_embeds\.pt, got"):
        load_pairs([tmp_path], "train", 4)
    with pytest.raises(ValueError, match=r"side: expected 32 x 32 as .*, whose latents are given, got 16"):
        Crops(pairs, 16)
    torch.save(Touch(tmp_path / "touched"), tmp_path / "latent_lr" / "0.pt")
    with pytest.raises(ValueError, match=r"0\.pt: expected a tensor"):
        Crops(pairs, 32).batch(0, 8)
    assert not (tmp_path / "touched").exists()  # no code in it is run
    (tmp_path / "latent_lr" / "0.pt").write_bytes(b"no tensor")
    with pytest.raises(ValueError, match=r"0\.pt: expected a tensor"):
        Crops(pairs, 32).batch(0, 8)
    part = batch[torch.tensor([2, 0])].repeat(2)
    assert torch.equal(part.extras["latent_lr"][:, 0, 0, 0], which[[2, 2, 0, 0]])
    with pytest.raises(ValueError, match="extras: expected 8 rows of latent_lr, one for each image, got 2"):
        batch.with_extras({"latent_lr": torch.zeros(2, 4)})


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
