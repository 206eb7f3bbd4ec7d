import pytest
from PIL import Image

from finpercep.data.dataset.pairs import find_images, listing_hash, match_photos
from finpercep.io.images import ImageError
from tests.conftest import close_folders


def touch(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def test_keys_of_folders_and_patterns(tmp_path):
    touch(tmp_path / "gt" / "a.png")
    touch(tmp_path / "gt" / "city" / "b.png")
    touch(tmp_path / "gt" / "city" / "b.map.png")  # an overlay
    (tmp_path / "gt" / "notes.txt").write_text("no image")
    assert list(find_images(str(tmp_path / "gt"))) == ["a", "city/b"]
    assert list(find_images(str(tmp_path / "gt"), tmp_path / "gt" / "city" / "b.png")) == ["a"]
    assert list(find_images(f"{tmp_path}/gt/*.png", tmp_path / "gt" / "a.png" / ".." / "b.png")) == ["a"]
    with pytest.raises(ImageError, match="with images, got none"):
        find_images(f"{tmp_path}/gt/*.png", tmp_path / "gt" / "city" / ".." / "a.png")
    touch(tmp_path / "x" / "0001_out.png")
    touch(tmp_path / "x" / "0002_out.png")
    assert list(find_images(f"{tmp_path}/x/*_out.png")) == ["0001", "0002"]
    touch(tmp_path / "s" / "one" / "gt.png")
    touch(tmp_path / "s" / "two" / "gt.png")
    assert list(find_images(f"{tmp_path}/s/*/gt.png")) == ["one", "two"]
    assert list(find_images(f"{tmp_path}/s/**/*.png")) == ["one_gt", "two_gt"]
    assert list(find_images(f"{tmp_path}//s/*//gt.png")) == ["one", "two"]
    touch(tmp_path / "best [of 3]" / "a [1].png")
    assert list(find_images(f"{tmp_path}/best [of 3]/*.png")) == ["a [1]"]


def test_photos_are_matched_by_name(tmp_path):
    for name in ("a", "b", "c"):
        touch(tmp_path / "gt" / f"{name}.png")
        touch(tmp_path / "lr" / f"{name}.png")
    for name in ("a", "c", "other"):
        touch(tmp_path / "sr" / f"{name}_x4.jpg")
    photos, problems = match_photos(str(tmp_path / "gt"), {"m": f"{tmp_path}/sr/*_x4.jpg"}, str(tmp_path / "lr"))
    assert [photo.id for photo in photos] == ["a", "c"]
    assert photos[1].results["m"].name == "c_x4.jpg"
    assert photos[1].lr.name == "c.png"
    assert problems == [f"m: no result for 'b' ({tmp_path}/gt/b.png)"]


def test_nothing_matches(tmp_path):
    touch(tmp_path / "gt" / "a.png")
    touch(tmp_path / "sr" / "a_x4.png")
    with pytest.raises(ImageError, match=r"m: expected results named like the photos \('a'\), got 'a_x4'"):
        match_photos(str(tmp_path / "gt"), {"m": str(tmp_path / "sr")})
    with pytest.raises(ImageError, match="expected a folder or pattern with images, got none"):
        find_images(str(tmp_path / "nowhere"))
    touch(tmp_path / "gt" / "a.jpg")
    with pytest.raises(ImageError, match=r"expected one image per name, got .* for 'a'"):
        find_images(str(tmp_path / "gt"))


def test_listing_hash_knows_contents_not_places(tmp_path):
    def listing(root, size=(8, 8)):
        touch(root / "gt" / "a.png", size)
        return listing_hash(match_photos(str(root / "gt"), {})[0])

    assert listing(tmp_path / "1") == listing(tmp_path / "2") != listing(tmp_path / "3", (300, 300))


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    import os

    try:
        (tmp_path / os.fsdecode(b"bad\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    with pytest.raises(ImageError, match=r"bad\\xff\.png: expected a file name in UTF-8"):
        find_images(str(tmp_path))


def test_a_broken_link_is_a_photo_that_is_missing(tmp_path):
    (tmp_path / "gt").mkdir()
    (tmp_path / "gt" / "a.png").write_bytes(b"")
    (tmp_path / "gt" / "b.png").symlink_to(tmp_path / "nowhere.png")
    photos, problems = match_photos(str(tmp_path / "gt"), {})
    assert [photo.id for photo in photos] == ["a"]
    assert problems == [f"{tmp_path / 'gt' / 'b.png'}: expected a file, found none"]


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    touch(tmp_path / "a.png")
    touch(tmp_path / "city" / "b.png")
    (tmp_path / "linked").symlink_to(tmp_path / "city")
    assert list(find_images(str(tmp_path))) == ["a", "city/b"]  # links are not entered
    close_folders(monkeypatch, "city")
    with pytest.raises(ImageError, match=r"city: expected a folder that can be read, got Permission denied"):
        find_images(str(tmp_path))
