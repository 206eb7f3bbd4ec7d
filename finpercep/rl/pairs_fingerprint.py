"""The identity of the images that a run learns from and is measured on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

from finpercep.io.fingerprints import listing_fingerprint
from finpercep.rl.pair import Pair


def pairs_fingerprint(pairs: Sequence[Pair]) -> str:
    """16 hex digits that identify pairs, in their order, wherever their sets lie: names and sizes of files in bytes.

    No file is read, so a file that was replaced by one of just the same size goes unnoticed.

    Raises:
        OSError: a file is missing; names it.
    """
    size = cache(os.path.getsize)  # the pairs of a stored data set share files
    return listing_fingerprint(
        [
            [[os.path.relpath(path, pair.root), size(path)] for path in pair.files],
            list(pair.place),
            *([] if pair.aligned else ["unaligned"]),
        ]
        for pair in pairs
    )
