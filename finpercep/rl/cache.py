"""Tensors that are computed once and kept on disk, under a key of everything that decides them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from finpercep.io.files import atomic_write


class TensorCache:
    """A folder with one safetensors file for each key; files appear under their names only once complete.

    A file that cannot be read, and one whose key is another, count as missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: Mapping[str, Any]) -> Path:
        """Where the tensors of a key lie; `key` is JSON-able."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}.safetensors"

    def get(self, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The tensors of a key, on the CPU; None where there are none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(key), "pt") as file:
                if (file.metadata() or {}).get("key") != json.dumps(key, sort_keys=True):
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return None

    def put(self, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a key.

        Raises:
            OSError: a full disk, no permission; names the file.
        """
        from safetensors.torch import save

        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_write(path) as file:
            file.write(save(whole, {"key": json.dumps(key, sort_keys=True)}))
