"""Results that equal their photos: left out and counted, or, where a whole source does, refused."""

import json
import shutil
from dataclasses import replace

import pytest

from finpercep.data.dataset.make import make_dataset
from finpercep.io.images import ImageError
from tests.data import fgr

pytest.importorskip("pyarrow", reason="needs pyarrow")


def test_samples_without_a_fault_are_left_out_and_counted(tmp_path):
    gt, (first, second, _) = fgr.inputs(tmp_path / "scenes", count=3)
    folder = tmp_path / "scenes" / "train" / "scene1"
    shutil.copy(folder / "gt.png", folder / "a.png")
    made = make_dataset(gt, [first, second], tmp_path / "fgr", fgr.CONFIG)
    assert made.manifest["left_out"] == [
        "scene1: 2 of 2 samples of a have no fault, they look like the photo inside the mask"
    ]
    rows = fgr.rows(tmp_path / "fgr")
    assert len(rows) == 3 * 2 * 2 - 2
    assert not any(row["photo"] == "scene1" and row["source"] == "a" for row in rows)


def test_a_set_without_samples_is_an_error(tmp_path):
    out = tmp_path / "fgr"
    gt, (first, *_) = fgr.inputs(tmp_path / "scenes", count=2)
    config = replace(fgr.CONFIG, skip_bad=True)
    make_dataset(gt, [first], out, config)
    assert (out / "preview.html").is_file()
    for path in (tmp_path / "scenes" / "train").glob("*/a.png"):
        path.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(ImageError, match=r"fgr: expected samples, got none: .*a\.png: .*manifest\.json lists what"):
            make_dataset(gt, [first], out, config)
        assert len(json.loads((out / "manifest.json").read_text())["left_out"]) == 2
        assert not [*out.glob("preview.*"), *out.glob("README.md")]


def test_a_source_that_equals_the_photos_is_refused(tmp_path):
    gt, (first, *_) = fgr.inputs(tmp_path / "scenes", count=3)
    with pytest.raises(
        ImageError, match="copy: expected super-resolved versions, got 3 images that equal their photos"
    ):
        make_dataset(gt, [first, f"folder:copy={gt}"], tmp_path / "fgr", fgr.CONFIG)
    assert not (tmp_path / "fgr").exists()
