"""Identities of weights, to be stored with what was made by them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_LARGE = 2**20


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_LARGE):
            digest.update(block)
    return digest.hexdigest()


def folder_fingerprint(folder: str | os.PathLike[str]) -> str:
    """16 hex digits of a saved model: names, sizes and contents; of files over 2 MB, the first and the last MB.

    Weights of several gigabytes would take longer to hash than to load; two trainings never agree in both ends.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file() and not p.name.startswith(".")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}\n".encode("utf-8", "surrogateescape"))
        with open(path, "rb") as file:
            digest.update(file.read(_LARGE))
            if size > 2 * _LARGE:
                file.seek(-_LARGE, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()[:16]


def model_folder(name: str, patterns: list[str] | None = None) -> str:
    """A saved model's folder: `name` itself, or where the hub's copy of it lies (downloaded if need be).

    Raises:
        OSError: neither; the message says why the hub has not given it.
    """
    name = os.path.expanduser(name)
    if os.path.isdir(name):
        return name
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=patterns)
    except Exception as error:  # the hub raises many types: no network, no such name, no permission
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{name}: expected a folder or a hub id that can be downloaded, got {reason}") from error
