"""Files that appear under their names only once complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["UNFINISHED", "append_line", "atomic_write", "read_text", "write_json"]

UNFINISHED = ".*.tmp"
"""What a kill may leave of a file that was being written."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its name at the end, or is removed on any error.

    Of a symbolic link it is the file behind it that is replaced. What is no file, a pipe or a device, is written as it
    is: what went there before an error stays.

    Raises:
        OSError: a full disk, no permission; names the file and, of a full disk, what is free.
    """
    if _is_stream(path):
        with _named(path), open(path, "wb") as file:
            yield file
        return
    with _replacing(Path(os.path.realpath(path)) if path.is_symlink() else path) as file:
        yield file


def _is_stream(path: Path) -> bool:
    """Whether it is there and neither file nor folder. Links of /dev/fd lead to pipes that have no path to resolve."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    # A hash: names may be as long as the file system allows, and differ anywhere. Threads may write the same file.
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with _named(path, str(temporary)):
        try:
            with open(temporary, "wb") as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file.

    Raises:
        ValueError: it is not UTF-8; names it.
        OSError: see `open`.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got {error.object[error.start : error.end]!r}") from None


def append_line(path: Path, text: str) -> None:
    """Add a line to a text file.

    Raises:
        OSError: see `atomic_write`; a part of the line may then be in the file.
    """
    with _named(path), open(path, "a") as file:
        file.write(text + "\n")


@contextmanager
def _named(path: Path, *others: str) -> Iterator[None]:
    """Errors of the system that name no file, or one of `others`, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, *others):
            raise
        raise OSError(error.errno, _reason(error, path), str(path)) from error


def _reason(error: OSError, path: Path) -> str:
    if error.errno != errno.ENOSPC:
        return error.strerror or str(error)
    return f"{error.strerror} ({shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free)"


def write_json(path: Path, content: Any) -> None:
    """Write JSON under its name only once complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
