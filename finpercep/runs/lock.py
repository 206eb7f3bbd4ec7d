"""One process at a time in a folder: two runs that write to the same one would destroy each other's files."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on Windows: two runs in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "FolderInUseError", "folder_lock"]

LOCK = ".lock"
"""The file's name inside the folder; there only while a process holds the lock, or where one was killed."""

_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # file systems without locks
_held: set[int] = set()  # descriptors of this process's locks


class FolderInUseError(OSError):
    """Another process works in the folder; the message, one line, says which."""


@contextmanager
def folder_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold `folder` (made if it is not there) against every other process until the end of the block.

    The operating system keeps the lock (`flock`) and drops it when the process ends in whatever way, so that a lock
    file that a kill left behind holds nobody up. Where the file system has no such locks, the block runs without one.

    Raises:
        FolderInUseError: another process, or another thread of this one, holds it.
        OSError: the folder cannot be made or written to.
    """
    path = Path(folder) / LOCK
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, owner = _acquire(path), os.getpid()
    _held.add(descriptor)
    try:
        yield
    finally:
        if os.getpid() == owner:  # not in a forked copy of this process, which has closed the file
            path.unlink(missing_ok=True)
            _held.discard(descriptor)
            os.close(descriptor)
            if made:
                with suppress(OSError):  # it holds something, as it should
                    path.parent.rmdir()


def _acquire(path: Path) -> int:
    """An open, locked file at `path` that says who holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, path)
            # Who held it before may have removed the file between our opening and our locking it.
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                with suppress(OSError):  # a full disk: the lock holds all the same
                    os.write(descriptor, _describe().encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderInUseError(
            f"{path.parent}: expected a folder that no other run is using, got one in use by {_holder(descriptor)}; "
            "wait for its end, or use another folder"
        ) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _describe() -> str:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "command": command, "since": since})


def _holder(descriptor: int) -> str:
    """Who the file says it is; it may not say so yet."""
    try:
        who = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {who['process']} on {who['host']} ({who['command']}) since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _close_in_child() -> None:
    """A forked worker that outlives this process must not keep its lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
