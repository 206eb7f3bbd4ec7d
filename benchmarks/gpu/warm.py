"""`python -m benchmarks.gpu.warm <part> <parts>`: compile a share of what will be measured, into the caches on disk.

torch.compile and Triton take longer than the measurements, and the GPU is idle while the extensions are built: several
of these run then. `built` in place of a share is what has to wait for the build, and runs beside the tests. Nothing is
timed here, and what inductor tuned beside other processes is forgotten.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.cases import CASES
from benchmarks.gpu.measure import DEVICE, prepare
from benchmarks.gpu.model import VARIANTS, WITH_OPERATOR, variant


def caches(folder: Path) -> dict[str, str]:
    """The environment that makes all processes of the check share their caches."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


def forget_tuning(folder: Path) -> None:
    """Remove inductor's choices among configurations: they were timed on a GPU that others used."""
    for path in folder.rglob("*.best_config"):
        path.unlink(missing_ok=True)


def release() -> None:
    """Leave the device's memory to the other processes."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def compile_model(name: str) -> None:
    with variant(name, DEVICE):
        pass


def jobs(built: bool) -> Iterator[Callable[[], object]]:
    """The longest first; with the extensions built, only what calls them."""
    yield from (partial(compile_model, name) for name in VARIANTS if (name == WITH_OPERATOR) == built)
    if not built:
        yield from (partial(prepare, case, name) for case in CASES for name in ("compile", "triton"))


def main(part: str, parts: str = "1") -> None:
    os.nice(10)  # the build goes first
    mine = list(jobs(True)) if part == "built" else list(jobs(False))[int(part) :: int(parts)]
    for job in mine:
        try:
            job()
        except Exception as error:  # the measurement will say so
            print(f"{type(error).__name__}: {str(error)[:300]}", flush=True)
        release()


if __name__ == "__main__":
    main(*sys.argv[1:])
