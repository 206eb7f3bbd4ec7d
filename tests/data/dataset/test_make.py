"""Data sets: their rows against the formulas, resuming, bad input, and reading them back."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finpercep import ops
from finpercep.data import load_scenes
from finpercep.data.dataset.config import MakeConfig, settings_difference
from finpercep.data.dataset.parquet import decode, encode
from finpercep.data.dataset.preview import draw_sheet
from finpercep.data.dataset.rle import decode_rle
from finpercep.data.dataset.stored import row_sample
from finpercep.data.features.filter_bank import FilterBank
from finpercep.data.scenes import StoredSample
from finpercep.data.swap import region_swap
from finpercep.data.targets import ALPHA, SCALE
from finpercep.data.triplets import Triplet, TripletConfig, Triplets
from finpercep.io.html_page import inline_jpeg
from finpercep.io.images import ImageError, expand_paths, load_image
from finpercep.io.parquet import PARQUET_SUFFIXES, find_rows, read_rows
from tests.conftest import REPOSITORY
from tests.data import fgr

pytest.importorskip("pyarrow", reason="needs pyarrow")


@pytest.fixture(scope="module")
def scenes_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    fgr.inputs(root)
    return root


@pytest.fixture(scope="module")
def dataset(scenes_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "fgr"
    fgr.make(scenes_root, out)
    return out


def test_rows_are_what_the_formulas_say(dataset, scenes_root):
    bank, table = FilterBank(), fgr.rows(dataset)
    assert len(table) == 5 * 3 * 2
    assert len({row["id"] for row in table}) == len(table)
    for row in table:
        gt, sr, syn, mask = (decode(row[name]) for name in ("gt", "sr", "syn", "mask"))
        folder = scenes_root / "train" / f"scene{row['photo'][-1]}"
        assert torch.equal(gt, load_image(folder / "gt.png"))
        if row["source"] in "ab":
            assert torch.equal(sr, load_image(folder / f"{row['source']}.png"))
            assert row["degradation"] is None or row["lr"] is not None
        assert torch.equal(syn, region_swap(gt, sr, mask))
        hard = decode_rle(json.loads(row["mask_rle"]))
        assert row["area"] == pytest.approx(hard.float().mean().item())
        assert 0.02 < row["area"] < 0.45
        if not row["feather"]:
            assert torch.equal(mask, hard.byte() * 255)
        for name, image in (("target", syn), ("target_sr", sr)):
            a, b = (bank(x[None].float() / 255) for x in (gt, image))
            expected = ops.degradation_target(
                gt[None], image[None], a, b, alpha=ALPHA, normalize="scale", scale=SCALE, backend="reference"
            )
            assert (decode(row[name]).float() / 255 - expected[0]).abs().max() < 0.6 / 255
        assert row["severity"] == pytest.approx(decode(row["target"])[hard].float().mean().item() / 255, abs=1e-6)


def test_images_beyond_pillows_limit_are_read(monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    image = torch.arange(20 * 30).remainder(256).byte().view(1, 20, 30)
    assert torch.equal(decode({"bytes": encode(image), "path": None}), image)


def test_low_resolution_versions_make_the_results(dataset):
    """The stored LR image is what the bicubic source enlarged; its parameters are there."""
    row = next(row for row in fgr.rows(dataset) if row["source"] == "bicubic")
    low, sr = decode(row["lr"]), decode(row["sr"])
    big = torch.nn.functional.interpolate(low[None].float() / 255, sr.shape[1:], mode="bicubic", align_corners=False)
    assert torch.equal(sr, (big[0].clamp(0, 1) * 255).round().byte())
    assert json.loads(row["degradation"])["first"]["noise"] in ("gaussian", "poisson")


def test_manifest_hashes_and_splits(dataset):
    import hashlib

    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["rows"] == {"train": 24, "validation": 6}
    for entry in manifest["files"]:
        content = (dataset / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
    by_split = {split: {r["photo"] for r in _split_rows(dataset, split)} for split in ("train", "validation")}
    assert not by_split["train"] & by_split["validation"]
    assert "Columns:" in (dataset / "README.md").read_text()


def _split_rows(folder, split):
    import pyarrow.parquet as pq

    return [row for p in sorted(folder.glob(f"data/{split}-*")) for row in pq.read_table(p).to_pylist()]


def test_repeated_images_lie_in_the_file_once(dataset):
    import pyarrow.parquet as pq

    path = next(dataset.glob("data/train-00000-*"))
    group = pq.ParquetFile(path).metadata.row_group(0)
    sizes = {group.column(i).path_in_schema: group.column(i).total_compressed_size for i in range(group.num_columns)}
    cells = {row["gt"]["bytes"] for row in pq.ParquetFile(path).read_row_group(0).to_pylist()}
    assert len(cells) == 1
    assert sizes["gt.bytes"] < len(next(iter(cells))) + 200
    assert group.num_rows == 6


def test_finpercep_score_finds_its_images(dataset):
    table = fgr.rows(dataset)
    for column in ("gt", "sr", "syn"):
        rows = [row for file in expand_paths([dataset], PARQUET_SUFFIXES) for row in find_rows(file, column)]
        found = {row.name: cell() for row, cell in zip(rows, read_rows(rows), strict=True)}
        assert len(found) == len(table)
        assert all(torch.equal(found[row["id"]], decode(row[column])) for row in table)


def test_opens_with_datasets(dataset, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    loaded = datasets.load_dataset("parquet", data_dir=str(dataset / "data"), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 24, "validation": 6}
    row = loaded["train"][0]
    assert (row["syn"].size, row["syn"].mode, row["target"].mode) == ((56, 48), "RGB", "L")
    assert isinstance(loaded["train"].features["mask"], datasets.Image)
    raw = fgr.rows(dataset)[0]
    sample = row_sample(row)
    assert torch.equal(sample.syn, decode(raw["syn"]))
    assert torch.equal(sample.target_syn, decode(raw["target"]))
    assert sample.row["id"] == raw["id"]
    stream = datasets.load_dataset(str(dataset), split="train", streaming=True)
    assert next(iter(stream))["id"] == raw["id"]


def test_triplets_read_it_and_resume_exactly(dataset):
    scenes = load_scenes(dataset, "train")
    assert len(scenes) == 4
    assert scenes[0].sources == ["a", "b", "bicubic"]
    assert scenes[0].gt.shape == (3, 48, 56)
    assert scenes[0].sr("b").shape == (3, 48, 56)
    plain = TripletConfig(crop=32, resized=0, compressed=0)
    triplets, again = (Triplets(scenes, plain, seed=3) for _ in range(2))
    for index in (7, 0, 30):
        triplet = triplets[index]
        assert isinstance(triplet, Triplet)
        assert triplet.gt.shape == triplet.syn.shape == triplet.sr.shape == (3, 32, 32)
        assert triplet.target_syn.shape == triplet.target_sr.shape == (1, 32, 32)
        assert all(torch.equal(a, b) for a, b in zip(triplet, again[index], strict=True))
        same = (triplet.syn == triplet.gt).all(0)
        if bool(same.all()):
            continue
        assert triplet.target_syn[0][~same].mean() > triplet.target_syn[0][same].mean()
    varied = Triplets(scenes, TripletConfig(crop=24), seed=0)
    for index in range(8):
        triplet = varied[index]
        assert triplet.target_sr.shape == (1, 24, 24)
        assert 0 <= triplet.target_sr.min() <= triplet.target_sr.max() <= 1
    with pytest.raises(ValueError, match="is smaller than the crop of 64"):
        Triplets(scenes, TripletConfig(crop=64))[0]


def test_scenes_of_a_data_set(dataset, tmp_path):
    assert len(load_scenes(dataset, "val")) == 1
    assert load_scenes(dataset, "train", leave_out=["a"])[0].sources == ["b", "bicubic"]
    with pytest.raises(ValueError, match=r"leave_out: \['c'\] not among"):
        load_scenes(dataset, "train", leave_out=["c"])
    with pytest.raises(ValueError, match="no scene in split 'test'"):
        load_scenes(dataset, "test")
    (tmp_path / "data").mkdir()
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: not found; the data set is not complete"):
        load_scenes(tmp_path, "train")


def test_the_trainer_trains_from_it(dataset, tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from finpercep.training.trainer import RewardTrainConfig, train

    encoder = {"type": "conv", "channels": [8, 16], "depths": [1, 1]}
    config = RewardTrainConfig(
        data=str(dataset),
        out=str(tmp_path),
        steps=2,
        batch=2,
        encoder=encoder,
        triplets=TripletConfig(crop=32),
        workers=0,
    )
    train(config)
    assert (tmp_path / "model.safetensors").is_file()


def test_again_gives_the_same_bytes_and_another_seed_does_not(dataset, scenes_root, tmp_path):
    fgr.make(scenes_root, tmp_path / "again")
    assert fgr.contents(tmp_path / "again") == fgr.contents(dataset)
    fgr.make(scenes_root, tmp_path / "other", replace(fgr.CONFIG, seed=1))
    assert fgr.contents(tmp_path / "other") != fgr.contents(dataset)


KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from tests.data import fgr

write, calls = pq.ParquetWriter.write_table, []
def dying(self, *arguments, **options):
    write(self, *arguments, **options)
    calls.append(1)
    if len(calls) == 4:  # in the middle of the second file
        os.kill(os.getpid(), signal.SIGKILL)
pq.ParquetWriter.write_table = dying
fgr.make(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_and_resumed_is_byte_identical(dataset, scenes_root, tmp_path):
    out = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", KILLED, scenes_root, out], env=environment, cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    assert len(list(out.glob("data/*.parquet"))) == 1
    assert len(list(out.glob("data/.*.tmp"))) == 1
    kept = next(out.glob("data/*.parquet"))
    before = kept.stat().st_mtime_ns
    made = fgr.make(scenes_root, out)
    assert kept.stat().st_mtime_ns == before  # not made again
    assert len(made.reports) == 2
    assert fgr.contents(out) == fgr.contents(dataset)


def test_killed_workers_lose_nothing(dataset, scenes_root, tmp_path):
    """Two processes; both are killed after the first file."""
    import multiprocessing

    seen = []

    def progress(done, total, report):
        if report is not None and not seen:
            seen.append(done)
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    fgr.make(scenes_root, tmp_path / "out", workers=2, progress=progress)
    assert seen
    assert fgr.contents(tmp_path / "out") == fgr.contents(dataset)


def test_ray_gives_the_same_bytes_and_survives_a_killed_actor(dataset, scenes_root, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs ray")
    psutil = pytest.importorskip("psutil", reason="needs psutil")
    environment = {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    seen = []

    def progress(done, total, report):
        if report is not None and not seen:
            seen.append(done)
            workers = [p for p in psutil.Process().children(recursive=True) if "_RayWorker" in " ".join(p.cmdline())]
            seen.extend(workers)
            for worker in workers[:1]:
                worker.kill()

    bad = tmp_path / "bad" / "train" / "scene0" / "gt.png"
    fgr.inputs(tmp_path / "bad")
    bad.write_bytes(b"no image")
    try:
        fgr.make(scenes_root, tmp_path / "out", workers=2, engine="ray", progress=progress)
        with monkeypatch.context() as elsewhere:  # than where the cluster began: paths are those of the command
            elsewhere.chdir(tmp_path)
            with pytest.raises(ImageError, match=r"bad/train/scene0/gt\.png: expected an image file"):
                fgr.make(Path("bad"), Path("none"), engine="ray")
            fgr.make(Path(os.path.relpath(scenes_root)), Path("again"), engine="ray")
    finally:
        ray.shutdown()
    assert fgr.contents(tmp_path / "again").keys() == fgr.contents(dataset).keys()
    assert len(seen) > 1
    assert fgr.contents(tmp_path / "out") == fgr.contents(dataset)


def test_a_folder_among_the_photos_goes_on(tmp_path):
    """Its preview is no photo of the next call, and neither are overlays."""
    from finpercep.data.dataset.make import make_dataset
    from finpercep.io.pictures import as_picture, save_image
    from tests.conftest import synthetic_photo

    for i in range(2):
        save_image(as_picture(synthetic_photo(48, 48, seed=i)), tmp_path / f"{i}.png")
    config = MakeConfig(masks_per_image=1, masks=("boxes",))
    make_dataset(str(tmp_path), ["builtin:smooth"], tmp_path / "fgr", config)
    save_image(as_picture(synthetic_photo(48, 48)), tmp_path / "0.map.png")
    before = fgr.contents(tmp_path / "fgr")
    assert "preview.png" in before
    assert make_dataset(str(tmp_path), ["builtin:smooth"], tmp_path / "fgr", config).manifest["photos"] == 2
    assert fgr.contents(tmp_path / "fgr") == before


def test_other_settings_are_refused_with_the_difference(dataset, scenes_root):
    with pytest.raises(ValueError, match=r"made with other settings: config\.alpha: was 0\.25, now 0\.4"):
        fgr.make(scenes_root, dataset, replace(fgr.CONFIG, alpha=0.4))
    difference = settings_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}, "d": 4})
    assert difference == ["a.b: was 1, now 3", "d: was None, now 4"]


def test_a_folder_with_something_else_is_refused(scenes_root, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        fgr.make(scenes_root, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_bad_results_stop_and_can_be_left_out(tmp_path):
    """One result is missing, one has another size, one is truncated."""
    from PIL import Image

    root, out = tmp_path / "scenes", tmp_path / "out"
    fgr.inputs(root)
    (root / "train" / "scene0" / "a.png").unlink()
    Image.new("RGB", (20, 20)).save(root / "train" / "scene1" / "b.png")
    broken = root / "train" / "scene2" / "gt.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"a: no result for 'scene0' .*--skip-bad leaves such photos out"):
        fgr.make(root, out)
    assert not out.exists()
    (root / "train" / "scene0" / "a.png").write_bytes((root / "train" / "scene0" / "b.png").read_bytes())
    with pytest.raises(ImageError, match=r"(b\.png: expected 56x48 like .*gt\.png, got 20x20|gt\.png: expected)"):
        fgr.make(root, out)
    made = fgr.make(root, out, replace(fgr.CONFIG, skip_bad=True))  # goes on in the same folder
    left_out = "\n".join(made.manifest["left_out"])
    assert len(made.manifest["left_out"]) == 2
    assert "got 20x20" in left_out
    assert "scene2/gt.png" in left_out
    assert sum(made.manifest["rows"].values()) == (4 * 3 - 1) * 2
    assert len(load_scenes(out, "train")) + len(load_scenes(out, "val")) == 4


def test_no_complete_photo_is_said(tmp_path):
    fgr.inputs(tmp_path / "scenes")
    folder = tmp_path / "scenes" / "train"
    for number, scene in enumerate(sorted(folder.iterdir())):
        (scene / "ab"[number % 2]).with_suffix(".png").unlink()
    with pytest.raises(ImageError, match=r"expected a photo with results of every source, got none: .*no result for"):
        fgr.make(tmp_path / "scenes", tmp_path / "out", replace(fgr.CONFIG, skip_bad=True))


def test_disk_full_keeps_what_is_complete(scenes_root, dataset, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    write, calls = pq.ParquetWriter.write_table, []

    def full(self, *arguments, **options):
        calls.append(1)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space left"):
        fgr.make(scenes_root, out)
    assert [p.suffix for p in (out / "data").iterdir()] == [".parquet"]  # one complete file, nothing half
    monkeypatch.undo()
    fgr.make(scenes_root, out)
    assert fgr.contents(out) == fgr.contents(dataset)


def test_a_sheet_of_tall_images_can_be_stored():
    tall = torch.zeros(3, 1600, 16, dtype=torch.uint8)
    row = {
        "photo": "a",
        "source": "b",
        "mask_kind": "c",
        "area": 0.1,
        "feather": 0,
        "severity": 0.2,
        "severity_sr": 0.3,
    }
    sheet = draw_sheet([StoredSample(tall, tall, tall, tall[:1], tall[:1], tall[:1], row)] * 12)
    assert sheet.height < 65_500
    assert inline_jpeg(sheet).startswith("data:image/jpeg")


def test_given_low_resolution_versions_are_used(tmp_path):
    from PIL import Image

    root = tmp_path / "scenes"
    gt, _ = fgr.inputs(root, 2)
    for i in range(2):
        Image.new("RGB", (14, 12), (40 * i, 0, 0)).save(root / "train" / f"scene{i}" / "lr.png")
    from finpercep.data.dataset.make import make_dataset

    low = f"{root}/train/*/lr.png"
    make_dataset(gt, ["builtin:bicubic"], tmp_path / "out", MakeConfig(val_share=0), lr=low)
    for row in fgr.rows(tmp_path / "out"):
        assert decode(row["lr"])[0].unique().tolist() == [40 * int(row["photo"][-1])]
        assert row["degradation"] is None
    results = [f"folder:a={root}/train/*/a.png"]  # which need none
    make_dataset(gt, results, tmp_path / "given", MakeConfig(val_share=0), lr=low)
    assert {decode(row["lr"])[0].unique().item() for row in fgr.rows(tmp_path / "given")} == {0, 40}
    Image.new("RGB", (15, 12)).save(root / "train" / "scene1" / "lr.png")
    with pytest.raises(ImageError, match=r"lr\.png: expected 14x12, 1/4 of .*got 15x12"):
        make_dataset(gt, ["builtin:bicubic"], tmp_path / "out2", MakeConfig(val_share=0), lr=low)

    (root / "train" / "scene1" / "lr.png").write_bytes(b"no image")
    config = MakeConfig(val_share=0, skip_bad=True)
    made = make_dataset(gt, ["builtin:bicubic"], tmp_path / "out3", config, lr=low)
    assert ["lr.png" in problem for problem in made.manifest["left_out"]] == [True]
    assert made.manifest["rows"]["train"] > 0


def test_crops_restriction_and_features(scenes_root, tmp_path):
    config = replace(fgr.CONFIG, crop=32, crops=2, restrict=True, features="none", val_share=0.0, feathered=0.0)
    fgr.make(scenes_root, tmp_path / "out", config)
    table = fgr.rows(tmp_path / "out")
    assert len(table) == 5 * 2 * 3 * 2
    assert {(row["height"], row["width"]) for row in table} == {(32, 32)}
    assert len({(row["photo"], row["top"], row["left"]) for row in table}) > 5
    for row in table:
        outside = ~decode_rle(json.loads(row["mask_rle"]))
        assert decode(row["target"])[outside].max() == 0
    assert len(load_scenes(tmp_path / "out", "train")) == 10


@pytest.mark.parametrize("crops", [4, 6])
def test_crops_of_a_photo_lie_at_places_of_their_own(tmp_path, crops):
    """40 x 36 photos have 3 x 2 places for crops of 32."""
    from PIL import Image

    from finpercep.data.dataset.make import make_dataset
    from tests.conftest import synthetic_photo

    (tmp_path / "gt").mkdir()
    for i in range(2):
        photo = (synthetic_photo(36, 40, seed=i) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(photo).save(tmp_path / "gt" / f"{i}.png")
    config = MakeConfig(val_share=0, crop=32, crops=crops, masks_per_image=1, masks=("boxes",))
    make_dataset(str(tmp_path / "gt"), ["builtin:bicubic"], tmp_path / "out", config)
    ids = [row["id"] for row in fgr.rows(tmp_path / "out")]
    assert len(ids) == len(set(ids)) == 2 * crops

    made = make_dataset(str(tmp_path / "gt"), ["builtin:bicubic"], tmp_path / "more", replace(config, crops=7))
    assert len(fgr.rows(tmp_path / "more")) == 2 * 6
    assert made.manifest["left_out"] == [f"{i}: 7 crops of 32 asked for, there are 6" for i in range(2)]


def test_sizes_that_are_no_multiple_of_the_scale(tmp_path):
    """49 x 58 photos and results of 48 x 56, as super-resolution gives them."""
    from PIL import Image

    from finpercep.data.dataset.make import make_dataset
    from tests.conftest import synthetic_photo

    for i in range(2):
        photo = (synthetic_photo(49, 58, seed=i) * 255).byte().permute(1, 2, 0).numpy()
        for folder, pixels in (("gt", photo), ("sr", 255 - photo[:48, :56])):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    sources = [f"folder:m={tmp_path}/sr", "builtin:bicubic"]
    for count in (1, 2):
        out = tmp_path / f"out{count}"
        make_dataset(str(tmp_path / "gt"), sources[:count], out, MakeConfig(val_share=0))
        assert {(row["height"], row["width"]) for row in fgr.rows(out)} == {(48, 56)}
    for height, width in ((32, 56), (45, 54)):  # nobody knows where these pixels lie
        Image.fromarray(photo[:height, :width]).save(tmp_path / "sr" / "1.png")
        for name, config in (("out", MakeConfig(val_share=0)), ("crops", MakeConfig(val_share=0, crop=32))):
            with pytest.raises(ImageError, match=rf"1.png: expected 58x49 like .*got {width}x{height}"):
                make_dataset(str(tmp_path / "gt"), sources[:1], tmp_path / f"{name}{height}", config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": ("stars",)}, "mask: expected one of"),
        ({"area": (0.0, 0.4)}, "area: expected 0 < low"),
        ({"features": "dino"}, "features: expected"),
        ({"alpha": 1.5}, "alpha: expected a weight"),
        ({"crop": 30}, "crop: expected a multiple of the scale 4"),
        ({"crops": 3}, "crops: expected 1 where photos are whole"),
        ({"val_share": 1.0}, "val_share: expected"),
        ({"feathered": 2.0}, "feathered: expected a share"),
        ({"feather": (0.0, 2.0)}, "feather: expected 0 < low"),
        ({"normalize": "softmax"}, "normalize: expected one of"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        MakeConfig(**options)
