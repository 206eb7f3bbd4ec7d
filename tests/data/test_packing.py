import json
import math

import pytest
import torch
from PIL import Image, features

from finpercep.data import load_scenes, packing
from finpercep.data.packing import QUALITIES, pack
from finpercep.io.images import load_image
from tests.data.conftest import write_scenes

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
LIMIT = 40_000


@pytest.fixture
def folders(tmp_path):
    """Two sets with scenes of the same names; one has a line with more fields and a low-resolution image."""
    one, two = write_scenes(tmp_path / "one", 3), write_scenes(tmp_path / "two", 2, sources=("c",))
    write_scenes(two, 1, split="val", sources=("c",))
    lines = [json.loads(line) for line in (two / "index.jsonl").read_text().splitlines()]
    lines[0] |= {"lr": "lr.png", "shift_px": 0.25, "licence": "CC0", "source": "a/b.png"}
    (two / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [one, two]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_written_fits_and_is_read(folders, tmp_path):
    packed = pack(folders, tmp_path / "out", LIMIT)
    files = contents(tmp_path / "out")
    assert packed.size == sum(map(len, files.values())) <= LIMIT
    assert packed.size > 0.8 * LIMIT or packed.quality == QUALITIES[-1]
    assert (packed.scenes, packed.images) == (5, 3 * 3 + 2 * 2)
    scenes = load_scenes(tmp_path / "out", "train")
    assert [scene.id for scene in scenes] == ["one/scene0", "one/scene1", "one/scene2", "two/scene0", "two/scene1"]
    assert [scene.aligned for scene in scenes] == [True, True, True, False, True]
    assert [scene.sources for scene in scenes] == [["a", "b"]] * 3 + [["c"]] * 2
    errors = []
    for scene, before in zip(scenes, [s for f in folders for s in load_scenes(f, "train")], strict=True):
        pairs = [(scene.gt, before.gt), *((scene.sr(name), before.sr(name)) for name in scene.sources)]
        errors += [(after.double() - photo).square().mean().item() for after, photo in pairs]
    assert all(errors)
    assert sum(10 * math.log10(255**2 / error) for error in errors) / len(errors) == pytest.approx(packed.psnr)
    line = json.loads((tmp_path / "out" / "index.jsonl").read_text().splitlines()[3])
    assert "lr" not in line
    assert (line["shift_px"], line["licence"], line["source"]) == (0.25, "CC0", "a/b.png")
    assert line["packed"] == f"AVIF 4:4:4, quality {packed.quality}"
    assert (line["gt"], line["sr"]) == ("gt.avif", {"c": "c.avif"})


def test_colors_are_not_subsampled():
    """Columns of red and blue, one pixel each: with chroma of half the size both would be purple."""
    stripes = torch.zeros(3, 16, 16, dtype=torch.uint8)
    stripes[0, :, ::2], stripes[2, :, 1::2] = 255, 255
    import io

    with Image.open(io.BytesIO(packing._encode(stripes, 90))) as image:
        decoded = load_image_of(image)
    assert (decoded.int() - stripes.int()).abs().max() < 40


def load_image_of(image):
    import numpy as np

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def test_the_best_quality_that_fits(folders, tmp_path):
    """The next one would not fit; more room gives more quality, up to the last one."""
    packed = pack(folders, tmp_path / "out", LIMIT)
    assert packed.quality < QUALITIES[-1]
    images = list((tmp_path / "out").rglob("*.avif"))
    over = sum(
        len(packing._encode(load_image(folder / "train" / path.parent.name / f"{path.stem}.png"), packed.quality + 3))
        for path in images
        for folder in folders
        if folder.name == path.parent.parent.name
    )
    assert over > packing.MARGIN * LIMIT - 5000
    roomy = pack(folders, tmp_path / "roomy", 10**9)
    assert roomy.quality == QUALITIES[-1]
    assert roomy.psnr > packed.psnr


def test_a_stopped_call_goes_on(folders, tmp_path, monkeypatch):
    pack(folders, tmp_path / "whole", LIMIT)
    encode, count = packing._encode, []

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(folders, tmp_path / "out", LIMIT, progress=stop)
    assert not (tmp_path / "out" / "index.jsonl").exists()
    monkeypatch.setattr(packing, "_encode", lambda *given: count.append(1) or encode(*given))
    pack(folders, tmp_path / "out", LIMIT)
    assert len(count) == 13 - 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_a_killed_call_left_counts_for_nothing(folders, tmp_path, monkeypatch):
    whole = pack(folders, tmp_path / "whole", LIMIT)
    half = ".0123456789abcdef.99999-1.tmp"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / half).write_bytes(b"0" * 100)  # killed while it wrote its first file

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(folders, tmp_path / "out", LIMIT, progress=stop)
    (next((tmp_path / "out").rglob("*.avif")).parent / half).write_bytes(b"0" * LIMIT)
    assert pack(folders, tmp_path / "out", LIMIT) == whole
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_sample_that_was_too_small_lowers_the_quality(folders, tmp_path, monkeypatch):
    """Files that come out larger than the sample said are made again, and still fit."""
    monkeypatch.setattr(packing._Sample, "bytes_per_pixel", lambda self, quality: quality * 1e-6)
    packed = pack(folders, tmp_path / "out", LIMIT)
    assert packed.quality < QUALITIES[-1]
    assert packed.size <= LIMIT


@pytest.mark.parametrize("state", ["{", "[]", "{}", '{"quality": null}', "\x00"])
def test_a_damaged_state_is_named(folders, tmp_path, state):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pack.json").write_text(state)
    with pytest.raises(ValueError, match=r"pack\.json: expected the state of a packing, got \S"):
        pack(folders, tmp_path / "out", LIMIT)


def test_lines_end_where_json_lines_do(folders, tmp_path):
    """A text may hold what Unicode, too, counts as the end of a line."""
    index = folders[1] / "index.jsonl"
    lines = [{**json.loads(line), "licence": "a\u2028b\u0085c"} for line in index.read_text().splitlines()]
    index.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    pack(folders[1:], tmp_path / "out", LIMIT)
    found = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert [line["licence"] for line in found] == ["a\u2028b\u0085c"] * 2


def test_too_small_a_limit_names_the_least(folders, tmp_path):
    with pytest.raises(
        ValueError, match=r"^limit: expected at least \d{4} bytes for 13 images at quality 30, got 2000 bytes$"
    ):
        pack(folders, tmp_path / "out", 2000)
    assert not (tmp_path / "out").exists()


def test_folders_that_do_not_fit(folders, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"^data: expected folders of different names, got one, one$"):
        pack([folders[0], folders[0]], out, LIMIT)
    with pytest.raises(FileNotFoundError, match=r"none/index\.jsonl: not found"):
        pack([tmp_path / "none"], out, LIMIT)
    with pytest.raises(ValueError, match=r"^data: expected scenes of the split test, got none$"):
        pack(folders, out, LIMIT, splits=("test",))
    pack(folders, out, LIMIT)
    with pytest.raises(ValueError, match=r"pack\.json: expected .* the same limit, got limit 40000 \(now 50000\)$"):
        pack(folders, out, 50_000)
    with pytest.raises(ValueError, match=r"one: expected an empty folder or one that was packed before"):
        pack(folders, folders[0], LIMIT)
    with (folders[0] / "index.jsonl").open("a") as index:
        index.write(json.dumps({"split": "train", "id": "../x", "gt": "g.png", "sr": {}}) + "\n")
    with pytest.raises(ValueError, match=r"index\.jsonl:4: expected names inside .*one, got '\.\./x'$"):
        pack(folders, tmp_path / "next", LIMIT)
