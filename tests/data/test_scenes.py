import dataclasses
import json

import pytest
import torch
from PIL import Image

from finpercep.data import load_scenes
from finpercep.data.scenes import split_dev, spread


def write_scene(root, split, name, size=(20, 16), sources=("a", "b")):
    folder = root / split / name
    folder.mkdir(parents=True)
    Image.new("RGB", size, (10, 20, 30)).save(folder / "gt.png")
    for i, source in enumerate(sources):
        Image.new("RGB", size, (100 + i, 0, 0)).save(folder / f"{source}.png")
    row = {"split": split, "id": name, "gt": "gt.png", "sr": {s: f"{s}.png" for s in sources}}
    with (root / "index.jsonl").open("a") as index:
        index.write(json.dumps(row) + "\n")


def test_scene_images(tmp_path):
    write_scene(tmp_path, "train", "one")
    write_scene(tmp_path, "val", "two")
    (scene,) = load_scenes(tmp_path, "val")
    assert (scene.id, scene.sources) == ("two", ["a", "b"])
    assert scene.gt.shape == (3, 16, 20)
    assert scene.gt.dtype == torch.uint8
    assert scene.gt[:, 0, 0].tolist() == [10, 20, 30]
    assert scene.sr("b")[0, 0, 0] == 101


def test_leave_out(tmp_path):
    write_scene(tmp_path, "train", "one")
    assert load_scenes(tmp_path, "train", leave_out=["a"])[0].sources == ["b"]
    with pytest.raises(ValueError, match=r"leave_out: \['c'\] not among the sources \['a', 'b'\]"):
        load_scenes(tmp_path, "train", leave_out=["c"])


def test_split_dev_takes_every_nth(tmp_path):
    for i in range(7):
        write_scene(tmp_path, "train", f"s{i}")
    scenes = load_scenes(tmp_path, "train")
    fit, dev = split_dev(scenes, 3)
    assert [s.id for s in dev] == ["s2", "s5"]
    assert [s.id for s in fit] == ["s0", "s1", "s3", "s4", "s6"]
    assert split_dev(scenes, 0) == (scenes, [])
    crops = [dataclasses.replace(scenes[0], id=name) for name in ("a|0,0", "a|0,8", "b|0,0", "b|8,0", "c|0,0")]
    fit, dev = split_dev(crops, 2)  # every other photo, with all its crops
    assert [scene.id for scene in fit] == ["a|0,0", "a|0,8", "c|0,0"]
    assert [scene.id for scene in dev] == ["b|0,0", "b|8,0"]


def test_lines_end_where_json_lines_do(tmp_path):
    """A text may hold what Unicode, too, counts as the end of a line."""
    row = {"split": "train", "id": "a\u2028b\u0085c", "gt": "gt.png", "sr": {}}
    line = json.dumps(row, ensure_ascii=False)
    (tmp_path / "index.jsonl").write_bytes(f"{line}\r\n\r\n{line}".encode())
    assert [scene.id for scene in load_scenes(tmp_path, "train")] == [row["id"]] * 2


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.jsonl: not found"):
        load_scenes(tmp_path, "train")
    write_scene(tmp_path, "train", "one")
    with pytest.raises(ValueError, match="no scene in split 'test'"):
        load_scenes(tmp_path, "test")
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "one" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected \(3, 16, 20\) like gt\.png, got \(3, 8, 8\)"):
        load_scenes(tmp_path, "train")[0].sr("a")
    with (tmp_path / "index.jsonl").open("a") as index:
        index.write('{"split": "train"}\n')
    with pytest.raises(ValueError, match=r"index\.jsonl:2: expected a scene"):
        load_scenes(tmp_path, "train")


@pytest.mark.parametrize("place", ["id", "gt", "sr"])
@pytest.mark.parametrize("name", ["../../x", "/etc/x"])
def test_names_stay_inside_the_folder(tmp_path, place, name):
    row = {"split": "train", "id": "one", "gt": "gt.png", "sr": {"a": "a.png"}}
    row[place] = {"a": name} if place == "sr" else name
    (tmp_path / "index.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"index\.jsonl:1: expected names inside .*got '{name}'"):
        load_scenes(tmp_path, "train")


@pytest.mark.parametrize(
    ("items", "count", "expected"), [("abcdef", 3, "ace"), ("abcdef", 4, "abde"), ("abc", 9, "abc"), ("abc", 0, "")]
)
def test_spread_takes_some_of_each_end(items, count, expected):
    assert "".join(spread(items, count)) == expected
