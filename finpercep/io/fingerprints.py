"""Identities of weights, to be stored with what was made by them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["file_hash", "folder_fingerprint", "listing_fingerprint", "weights_fingerprint"]

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

    Weights of several gigabytes would take longer to hash than to load; two trainings never agree in both ends. Hidden
    files and folders, such as `.git` and the hub's `.cache`, do not count.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file() and not _is_hidden(p.relative_to(folder))):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}\n".encode("utf-8", "surrogateescape"))
        with open(path, "rb") as file:
            digest.update(file.read(_LARGE))
            if size > 2 * _LARGE:
                file.seek(-_LARGE, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def listing_fingerprint(rows: Iterable[Any]) -> str:
    """16 hex digits that identify JSON-able rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def weights_fingerprint(config: Any, weights: Mapping[str, Tensor]) -> str:
    """16 hex digits that identify a JSON-able configuration and weights (their values, and their types if not
    float32)."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        if tensor.is_floating_point() and tensor.dtype != torch.float32:  # a model in bf16 answers otherwise
            digest.update(str(tensor.dtype).encode())
        values = tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()
        digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
