"""Files that appear under their names only once complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["UNFINISHED", "atomic_write", "write_json"]

UNFINISHED = ".*.tmp"
"""What a kill may leave of a file that was being written."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its name at the end, or is removed on any error.

    Raises:
        OSError: a full disk, no permission; names `path` and, of a full disk, what is free.
    """
    # A hash: names may be as long as the file system allows, and differ anywhere. Threads may write the same file.
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, _reason(error, path), str(path)) from error
        raise


def _reason(error: OSError, path: Path) -> str:
    if error.errno != errno.ENOSPC:
        return error.strerror or str(error)
    return f"{error.strerror} ({shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free)"


def write_json(path: Path, content: Any) -> None:
    """Write JSON under its name only once complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
