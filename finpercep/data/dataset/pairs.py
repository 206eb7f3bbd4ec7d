"""Photos and the results that belong to them, matched by file name."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from finpercep.data.sources.protocol import Photo
from finpercep.io.image_paths import IMAGE_SUFFIXES, raise_unreadable
from finpercep.io.images import ImageError

__all__ = ["find_images", "listing_hash", "match_photos"]

_WILD = re.compile(r"(\*\*/|\*|\?)")


def find_images(pattern: str, leave_out: Path | None = None) -> dict[str, Path]:
    """The images of a folder or a pattern, by what distinguishes them.

    - A folder: every image below it but overlays (``*.map.png``), linked folders not entered; the key is the path
      inside it without suffix ("city/0001").
    - A pattern with ``*``, ``?`` or ``**/``: what the wildcards stand for, joined by "_"; so
      ``results/*_x4.png`` gives "0001" for ``results/0001_x4.png``, and ``*/gt.png`` the folder's name.
      Brackets are brackets, as file names have them.

    Args:
        pattern: folder or pattern.
        leave_out: a file that is not meant.

    Raises:
        ImageError: nothing found, two files with one key, a folder that cannot be read, or a name that is not UTF-8.
    """
    pattern = os.path.expanduser(pattern)
    found: dict[str, Path] = {}
    for key, path in _keyed_folder(pattern) if os.path.isdir(pattern) else _keyed_glob(pattern):
        if leave_out is not None and os.path.abspath(path) == os.path.abspath(leave_out):
            continue
        _check_utf8(path)
        if key in found:
            raise ImageError(f"{pattern}: expected one image per name, got {found[key]} and {path} for {key!r}")
        found[key] = path
    if not found:
        raise ImageError(f"{pattern}: expected a folder or pattern with images, got none")
    return dict(sorted(found.items()))


def _check_utf8(path: Path) -> None:
    """Ids stand in the data set, which holds UTF-8 alone."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ImageError(f"{shown}: expected a file name in UTF-8; rename it") from None


def _keyed_folder(folder: str) -> list[tuple[str, Path]]:
    keyed = []
    for root, folders, files in os.walk(folder, onerror=raise_unreadable):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() in IMAGE_SUFFIXES and not file.startswith(".") and not file.endswith(".map.png"):
                key = os.path.relpath(os.path.join(root, stem), folder).replace(os.sep, "/")
                keyed.append((key, Path(root, file)))
    return keyed


def _keyed_glob(pattern: str) -> list[tuple[str, Path]]:
    pattern = re.sub("/{2,}", "/", pattern)  # as `glob` gives the files
    parts = _WILD.split(pattern)
    groups = {"**/": "(.*/)?", "*": "([^/]*)", "?": "([^/])"}
    regex = re.compile("".join(groups.get(part, re.escape(part)) for part in parts))
    keyed = []
    for file in glob.glob(pattern.replace("[", "[[]"), recursive=True):
        match = regex.fullmatch(file.replace(os.sep, "/"))
        if match and os.path.isfile(file):
            wild = [text.strip("/") for text in match.groups() if text and text.strip("/")]
            keyed.append(("_".join(wild) or Path(file).stem, Path(file)))
    return keyed


def match_photos(
    gt: str, results: Mapping[str, str], lr: str | None = None, leave_out: Path | None = None
) -> tuple[list[Photo], list[str]]:
    """Photos with everything that belongs to them, and one line for each that is incomplete.

    Args:
        gt: folder or pattern of the photos.
        results: source -> folder or pattern of its results.
        lr: folder or pattern of low-resolution versions.
        leave_out: see `find_images`.

    Returns: the complete photos, ordered by id, and the problems ("results of X: no file for '0003' (photo …)").
    Raises:
        ImageError: a folder without images or one that cannot be read, or a source none of whose names is a photo's.
    """
    photos = find_images(gt, leave_out)
    found = {name: find_images(pattern, leave_out) for name, pattern in results.items()}
    low = find_images(lr, leave_out) if lr is not None else None
    for name, files in {**found, **({"lr": low} if low is not None else {})}.items():
        if not photos.keys() & files.keys():
            raise ImageError(f"{name}: expected results named like the photos ({_some(photos)}), got {_some(files)}")
    complete, problems = [], []
    for key, path in photos.items():
        missing = [f"{name}: no result for {key!r} ({path})" for name, files in found.items() if key not in files]
        if low is not None and key not in low:
            missing.append(f"lr: no file for {key!r} ({path})")
        if not missing:
            photo = Photo(key, path, {name: files[key] for name, files in found.items()}, low[key] if low else None)
            given = (path, *photo.results.values(), *([photo.lr] if photo.lr else []))
            missing = [f"{file}: expected a file, found none" for file in given if not file.is_file()]  # a broken link
            if not missing:
                complete.append(photo)
        problems += missing
    return complete, problems


def _some(files: Mapping[str, Path]) -> str:
    names = [repr(name) for name in list(files)[:3]]
    return ", ".join(names) + (", …" if len(files) > 3 else "")


def listing_hash(photos: list[Photo]) -> str:
    """What the inputs are, without reading them: ids, sources and file sizes; not where they lie."""
    digest = hashlib.sha256()
    for photo in photos:
        files = {"gt": photo.gt, **photo.results, **({"lr": photo.lr} if photo.lr else {})}
        sizes = ",".join(f"{name}={path.stat().st_size}" for name, path in sorted(files.items()))
        digest.update(f"{photo.id}:{sizes}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
