"""The identity of the scenes that a model was trained or measured on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

from finpercep.data.scenes import Scene
from finpercep.io.fingerprints import listing_fingerprint

__all__ = ["scenes_fingerprint"]


def scenes_fingerprint(scenes: Sequence[Scene]) -> str:
    """16 hex digits that identify scenes, in their order, wherever they lie: ids, sources, sizes of files in bytes,
    and which a camera took twice.

    No file is read, so a file that was replaced by one of just the same size goes unnoticed.

    Raises:
        OSError: a file is missing; names it.
    """
    size = cache(os.path.getsize)  # the scenes of a stored data set share files
    return listing_fingerprint(
        [
            scene.id,
            size(scene.gt_path),
            [[name, size(path)] for name, path in scene.sr_paths.items()],
            scene.place(),
            *([] if scene.aligned else ["unaligned"]),
        ]
        for scene in scenes
    )
