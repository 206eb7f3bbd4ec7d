"""Going on with a data set whose inputs or files have changed: nothing is mixed, nothing is made again without need."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from finpercep.data.dataset import hashes
from finpercep.data.dataset.engines import _shard_from_json, _shard_to_json
from finpercep.data.dataset.hashes import HASHES
from finpercep.data.dataset.make import make_dataset
from finpercep.data.dataset.parquet import decode, shard_metadata
from finpercep.data.dataset.shards import Shard
from finpercep.data.loading import load_scenes
from finpercep.data.sources.protocol import Photo
from finpercep.io.color_profiles import CONVERSION
from finpercep.io.images import ImageError, load_image
from tests.data import fgr
from tests.io import icc

pytest.importorskip("pyarrow", reason="needs pyarrow")
pytestmark = pytest.mark.training


@pytest.fixture
def made(tmp_path):
    """Inputs, and a finished data set of them: three files of two, two and one photos."""
    fgr.make(tmp_path / "scenes", tmp_path / "fgr")
    return tmp_path / "scenes", tmp_path / "fgr"


@pytest.fixture
def reads(monkeypatch):
    """The files whose contents are read for their hash."""
    paths, read = [], hashes.file_hash
    monkeypatch.setattr(hashes, "file_hash", lambda path: paths.append(path) or read(path))
    return paths


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("data/*.parquet")}


def shard_of(folder, photo):
    return next(p for p in folder.glob("data/*.parquet") if photo in {row["photo"] for row in rows(p)})


def rows(path):
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def flip(path, *, keep_time=False):
    """Change one byte in the middle of a file."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_whole_number_is_the_setting_that_it_equals(made):
    root, out = made
    before = fgr.contents(out)
    config = replace(fgr.CONFIG, alpha=1.0)
    fgr.make(root, root / "one", config)
    settings = (root / "one" / "settings.json").read_bytes()
    assert not fgr.make(root, root / "one", replace(config, alpha=1)).reports
    assert (root / "one" / "settings.json").read_bytes() == settings
    assert fgr.contents(out) == before


def test_what_an_attempt_without_a_file_was_given_is_forgotten(tmp_path):
    root, out = tmp_path / "scenes", tmp_path / "fgr"
    fgr.inputs(root)
    photo = root / "train" / "scene0" / "gt.png"
    photo.write_bytes(b"no image")
    with pytest.raises(ImageError):
        fgr.make(root, out)
    assert not list(out.glob("data/*.parquet"))
    for path in (photo, *photo.parent.glob("[ab].png")):
        path.rename(path.with_suffix(".gone"))
    fgr.make(root, out)
    before = times(out)
    image = ImageOps.mirror(Image.open(root / "train" / "scene1" / "gt.png"))
    image.save(root / "train" / "scene1" / "gt.png", optimize=True)
    fgr.make(root, out)  # refused before: "gone: scene0"
    after = times(out)
    assert sum(after[name] != before[name] for name in before) == 1


def test_nothing_is_read_again_but_what_seems_changed(made, reads):
    root, out = made
    before = fgr.contents(out)
    assert not fgr.make(root, out).reports
    assert reads == []
    photo, shard = root / "train" / "scene0" / "gt.png", sorted(out.glob("data/*.parquet"))[0]
    for path in (photo, shard):
        path.touch()
    assert not fgr.make(root, out).reports
    assert reads == [photo, shard]
    fgr.make(root, out)
    assert reads == [photo, shard]  # the new times are on record
    fgr.make(root, out, verify=True)
    assert len(reads) == 2 + 5 * 3 + 3
    assert fgr.contents(out) == before


def test_results_replaced_by_others_of_the_same_size_are_not_mixed(tmp_path, caplog):
    gt, results = tmp_path / "gt", tmp_path / "results"
    for folder in (gt, results):
        folder.mkdir()
    for i in range(4):
        Image.effect_noise((40, 32), 50 + i).convert("RGB").save(gt / f"{i}.ppm")
        Image.effect_noise((40, 32), 90 + i).convert("RGB").save(results / f"{i}.ppm")

    def make(out, **options):
        return make_dataset(str(gt), [f"folder:a={results}"], tmp_path / out, fgr.CONFIG, **options)

    make("old")
    for path in results.iterdir():
        picture = Image.open(path)
        picture.load()
        ImageOps.mirror(picture).save(path)
    next((tmp_path / "old" / "data").glob("train-00000*")).unlink()
    made = make("old")
    assert len(made.reports) == 3
    names = [f"{i} (sr a)" for i in range(4)]
    assert made.manifest.pop("replaced_inputs") == names
    # the one that was deleted is made without a word
    assert len(caplog.messages) == 1
    assert "; 2 of 3 files are made again" in caplog.messages[0]
    fresh = make("new")
    assert made.manifest == fresh.manifest
    assert samples(tmp_path / "old") == samples(tmp_path / "new")


def samples(folder):
    return {path.name: path.read_bytes() for path in folder.glob("data/*.parquet")}


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("recorded", [True, False], ids=["", "of an older version"])
def test_a_damaged_file_is_made_again(made, recorded, damage, caplog):
    root, out = made
    before, shard = fgr.contents(out), sorted(out.glob("data/*.parquet"))[1]
    if not recorded:  # the manifest says what it held
        (out / HASHES).unlink()
    damage(shard)
    done = fgr.make(root, out)
    assert [report.path for report in done.reports] == [f"data/{shard.name}"]
    assert caplog.messages == [f"{out}: not what would be made now: data/{shard.name}; made again"]
    assert fgr.contents(out) == before


def test_verify_finds_what_kept_its_time(made, caplog):
    root, out = made
    before, shard = fgr.contents(out), sorted(out.glob("data/*.parquet"))[2]
    flip(shard, keep_time=True)
    assert not fgr.make(root, out).reports
    assert not caplog.messages
    assert len(fgr.make(root, out, verify=True).reports) == 1
    assert shard.name in caplog.messages[0]
    assert fgr.contents(out) == before


def test_a_repaired_photo_touches_its_own_file_alone(tmp_path, caplog):
    root, out = tmp_path / "scenes", tmp_path / "fgr"
    fgr.inputs(root)
    photo = root / "train" / "scene2" / "gt.png"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:200])
    config = replace(fgr.CONFIG, skip_bad=True)
    assert len(fgr.make(root, out, config).manifest["left_out"]) == 1
    kept = times(out)
    photo.write_bytes(whole)
    done = fgr.make(root, out, config)
    assert caplog.messages == [
        f"{out}: inputs changed since samples were made of them: scene2 (gt); 1 of 3 files are made again"
    ]
    own = shard_of(out, "scene2").name
    assert [name for name, time in times(out).items() if time != kept[name]] == [own]
    assert done.manifest["replaced_inputs"] == ["scene2 (gt)"]
    assert not done.manifest["left_out"]
    assert sum(done.manifest["rows"].values()) == 5 * 3 * 2
    fresh = fgr.make(root, tmp_path / "fresh")
    # the same samples; the settings' fingerprint is that of the folder
    assert [{**row, "settings": ""} for row in fgr.rows(out)] == [
        {**row, "settings": ""} for row in fgr.rows(tmp_path / "fresh")
    ]
    assert "replaced_inputs" not in fresh.manifest
    assert not fgr.make(root, out).reports


def test_a_set_that_was_made_again_is_read_anew(made):
    scenes, folder = made
    before = {scene.id: scene.gt for scene in load_scenes(folder, "train")}
    changed = sorted(before)[0]
    photo = next(path for path in (scenes / "train").glob("*/gt.png") if path.parent.name in changed)
    Image.open(photo).transpose(Image.Transpose.ROTATE_180).save(photo)
    fgr.make(scenes, folder)
    after = {scene.id: scene.gt for scene in load_scenes(folder, "train")}
    assert torch.equal(after[changed], load_image(photo))
    assert not torch.equal(after[changed], before[changed])


def test_a_run_that_was_killed_while_it_repaired_goes_on(made, monkeypatch):
    root, out = made
    shutil.copy(root / "train" / "scene0" / "b.png", root / "train" / "scene0" / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr("finpercep.data.dataset.make.run_shards", lambda *a, **k: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            fgr.make(root, out)
    assert not (out / "manifest.json").exists()  # what is there is not complete
    assert len(fgr.make(root, out).reports) == 1
    row = next(row for row in fgr.rows(out) if row["photo"] == "scene0" and row["source"] == "a")
    assert torch.equal(decode(row["sr"]), load_image(root / "train" / "scene0" / "b.png"))


@pytest.mark.parametrize("changed", [False, True])
def test_a_file_finished_just_before_a_kill(made, changed):
    """It is there, but the record does not know it, and may end in half a line."""
    root, out = made
    record, name = out / HASHES, shard_of(out, "scene0").name
    lines = [line for line in record.read_text().splitlines() if f'"shard": "data/{name}"' not in line]
    record.write_text("\n".join(lines) + '\n{"shard": "da')
    if changed:
        flip(root / "train" / "scene0" / "a.png")
        shutil.copy(root / "train" / "scene0" / "b.png", root / "train" / "scene0" / "a.png")
    assert [report.path for report in fgr.make(root, out).reports] == ([f"data/{name}"] if changed else [])
    assert not fgr.make(root, out).reports
    json.loads(record.read_text().splitlines()[-1])


def test_other_photos_are_named(made):
    root, out = made
    shutil.copytree(root / "train" / "scene0", root / "train" / "scene9")
    with pytest.raises(
        ValueError,
        match=r"photos: was 5, now 6; inputs: new: scene9 \(gt\), scene9 \(sr a\), scene9 \(sr b\)\. Use another",
    ):
        fgr.make(root, out)
    shutil.rmtree(root / "train" / "scene9")
    shutil.rmtree(root / "train" / "scene1")
    with pytest.raises(ValueError, match=r"photos: was 5, now 4; inputs: gone: scene1 \(gt\), scene1 \(sr a\)"):
        fgr.make(root, out)


def test_a_run_that_made_nothing_leaves_the_folder_free(made, tmp_path):
    """It ended at a photo whose pixels cannot be read; that mended, the folder is taken with other settings, too."""
    scenes, whole = made
    photo = min((scenes / "train").glob("*/gt.png"))
    pixels = photo.read_bytes()
    photo.write_bytes(pixels[: len(pixels) // 2])
    with pytest.raises(ValueError, match=r"gt\.png: expected a readable image"):
        fgr.make(scenes, tmp_path / "again", replace(fgr.CONFIG, seed=1, photos_per_shard=5))
    photo.write_bytes(pixels)
    fgr.make(scenes, tmp_path / "again")
    assert fgr.contents(tmp_path / "again").keys() == fgr.contents(whole).keys()
    with pytest.raises(ValueError, match="made with other settings"):
        fgr.make(scenes, tmp_path / "again", replace(fgr.CONFIG, seed=1))


def test_other_inputs_of_a_data_set_without_a_record_are_refused(made):
    root, out = made
    (out / HASHES).unlink()
    assert not fgr.make(root, out).reports  # the same inputs, as far as their sizes say
    (out / HASHES).unlink()
    path = root / "train" / "scene0" / "a.png"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"inputs: not those that the data set was made of, by size \(no \.hashes"):
        fgr.make(root, out)


def test_an_input_that_cannot_be_read_is_reported_where_it_is_needed(tmp_path, monkeypatch):
    read = hashes.file_hash

    def refuse(path):
        if path.name == "a.png" and path.parent.name == "scene0":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(hashes, "file_hash", refuse)
    root, out = tmp_path / "scenes", tmp_path / "fgr"
    fgr.make(root, out)
    monkeypatch.undo()
    assert len(fgr.make(root, out).reports) == 1  # what it held then is not known


def test_converted_colors_are_in_the_files_identity(tmp_path, monkeypatch):
    root, out = tmp_path / "scenes", tmp_path / "fgr"
    fgr.inputs(root)
    photo = root / "train" / "scene3" / "gt.png"
    picture = Image.open(photo)
    picture.save(photo, icc_profile=icc.rgb_profile(icc.DISPLAY_P3, None))
    with monkeypatch.context() as patch:  # an older version, which ignored profiles
        patch.setattr("finpercep.data.dataset.hashes.is_converted", lambda path: False)
        patch.setattr("finpercep.io.pil_images.conversion_of", lambda image, name: None)
        fgr.make(root, out)
    (out / HASHES).unlink()
    old = shard_of(out, "scene3")
    assert "finpercep.colors" not in shard_metadata(old)
    assert [report.path for report in fgr.make(root, out).reports] == [f"data/{old.name}"]
    assert {p.name: shard_metadata(p).get("finpercep.colors") for p in out.glob("data/*.parquet")} == {
        name: CONVERSION if name == old.name else None for name in times(out)
    }
    row = next(row for row in rows(old) if row["photo"] == "scene3")
    assert torch.equal(decode(row["gt"]), load_image(photo))
    assert not torch.equal(decode(row["gt"]), torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    assert not fgr.make(root, out).reports


def test_shards_reach_the_cluster_whole(tmp_path):
    photo = Photo("a", tmp_path / "a.png", {"x": tmp_path / "b.png"}, tmp_path / "c.png")
    shard = Shard("data/train-00000-of-00001.parquet", (photo,), True)
    assert _shard_from_json(_shard_to_json(shard)) == shard


def test_a_device_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^device: expected a device of this machine, got tpu: "):
        fgr.make(tmp_path / "scenes", tmp_path / "fgr", workers=2, device="tpu")
    assert not (tmp_path / "fgr").exists()
