"""Which files a user means: files, folders and globs to paths."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from finpercep.io.image_error import ImageError

_SUFFIXES = "png jpg jpeg jfif mpo webp tif tiff bmp gif ppm pgm pbm pnm jp2 tga qoi avif heic heif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""What counts as an image inside a folder. A file named by itself or by a glob is always tried."""


def raise_unreadable(error: OSError) -> None:
    """Of a folder that `os.walk` would skip: it is an `ImageError` that names it."""
    raise ImageError(f"{error.filename}: expected a folder that can be read, got {error.strerror}") from error


def expand_paths(
    args: Sequence[str | os.PathLike[str]],
    suffixes: Collection[str] = IMAGE_SUFFIXES,
    unreadable: Callable[[OSError], None] = raise_unreadable,
) -> list[Path]:
    """Files, folders and globs to a sorted list of files, each once.

    A folder gives every file below it with one of the suffixes (but hidden ones, and the overlays ``*.map.png`` that
    ``finpercep score --maps`` writes; linked folders are not entered); a glob (``*``, ``?``,
    ``[…]``, ``**``) gives what it matches, folders opened likewise; anything else is a file and stays in the
    list even when it does not exist, so that reading it reports it by name. A folder without such files and a
    glob without matches raise `ImageError`. `unreadable` is called for each folder that cannot be read, and by default
    raises it, too.
    """
    if isinstance(args, (str, os.PathLike)):
        args = [args]
    found: dict[str, Path] = {}
    for arg in args:
        for path in _expand(os.path.expanduser(os.fspath(arg)), suffixes, unreadable):
            found.setdefault(os.path.abspath(path), Path(path))
    if not found:
        raise ImageError("paths: expected at least one file, folder or glob, got none")
    return sorted(found.values())


def _expand(text: str, suffixes: Collection[str], unreadable: Callable[[OSError], None]) -> list[str]:
    if os.path.isdir(text):
        inside = list(_walk(text, suffixes, unreadable))
        if not inside:
            if len(suffixes) == 1:
                raise ImageError(f"{text}: expected a folder with *{next(iter(suffixes))} files, got none")
            raise ImageError(f"{text}: expected a folder with images, got none with a known suffix")
        return inside
    if os.path.exists(text) or not glob.has_magic(text):
        return [text]
    matches = glob.glob(text, recursive=True)
    files = [f for match in matches for f in (_walk(match, suffixes, unreadable) if os.path.isdir(match) else [match])]
    if not files:
        raise ImageError(f"{text}: expected a pattern that matches files, got no match")
    return files


def _walk(folder: str, suffixes: Collection[str], unreadable: Callable[[OSError], None]) -> Iterator[str]:
    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in files:
            if file.startswith(".") or file.endswith(".map.png"):
                continue
            if os.path.splitext(file)[1].lower() in suffixes:
                yield os.path.join(root, file)
