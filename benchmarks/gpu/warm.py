"""`python -m benchmarks.gpu.warm <part> <parts>`: compile a share of what will be measured, into the caches on disk.

torch.compile and Triton take longer than the measurements, and the GPU is idle while the extensions are built: several
of these run then. Nothing is timed here, and what inductor tuned beside other processes is forgotten.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.gpu.cases import CASES
from benchmarks.gpu.measure import DEVICE, prepare
from benchmarks.gpu.model import VARIANTS, variant


def caches(folder: Path) -> dict[str, str]:
    """The environment that makes all processes of the check share their caches."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


def forget_tuning(folder: Path) -> None:
    """Remove inductor's choices among configurations: they were timed on a GPU that others used."""
    for path in folder.rglob("*.best_config"):
        path.unlink(missing_ok=True)


def compile_model(name: str) -> None:
    with variant(name, DEVICE):
        pass


def jobs() -> Iterator[Callable[[], object]]:
    """The longest first."""
    yield from (partial(compile_model, name) for name in VARIANTS)
    yield from (partial(prepare, case, name) for case in CASES for name in ("compile", "triton"))


def main(part: int, parts: int) -> None:
    os.nice(10)  # the build goes first
    for job in list(jobs())[part::parts]:
        try:
            job()
        except Exception as error:  # the measurement will say so
            print(f"{type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
