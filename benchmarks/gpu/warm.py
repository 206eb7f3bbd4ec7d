"""`python -m benchmarks.gpu.warm <part> <parts>`: compile a share of what will be measured, into the caches on disk.

The GPU is idle while the extensions are built: several of these run then. `built` in place of a share is what has to
wait for the build, and runs beside the tests. Nothing is timed here.
"""

from __future__ import annotations

import os
import sys

from benchmarks.gpu.measure import Cell, cells, release
from benchmarks.gpu.model import WITH_OPERATOR


def chosen(part: str, parts: str = "1") -> list[Cell]:
    """The longest first."""
    every = [cell for cell in reversed(cells("all")) if cell.name not in ("eager", "cuda")]
    needs_build = [cell for cell in every if cell.name == WITH_OPERATOR]
    if part == "built":
        return needs_build
    return [cell for cell in every if cell not in needs_build][int(part) :: int(parts)]


def main(*arguments: str) -> None:
    os.nice(10)  # the build goes first
    for cell in chosen(*arguments):
        try:
            with cell.prepared():
                pass
        except Exception as error:  # the measurement will say so
            print(f"{type(error).__name__}: {str(error)[:300]}", flush=True)
        release()


if __name__ == "__main__":
    main(*sys.argv[1:])
