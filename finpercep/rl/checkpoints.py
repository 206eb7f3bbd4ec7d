"""`checkpoint-N` folders: each whole or absent, the last few kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finpercep.runs.state import STATE, write_state

_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(out: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints of a run that have a state, the latest step last."""
    found = [(match, path) for path in out.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found if (path / STATE).is_file())


@contextmanager
def whole_folder(folder: Path, unfinished: Path) -> Iterator[Path]:
    """Inside, a new folder `unfinished` beside `folder`, whose place and name it takes at the end.

    Raises:
        OSError: a full disk, no permission; what was there before stays.
    """
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_checkpoint(
    out: Path, step: int, state: dict[str, Any], save_models: Callable[[Path], None], keep: int
) -> None:
    """Write `checkpoint-<step>` with state.pt and the models, and remove all but the `keep` that were written last.

    Args:
        out: the run's folder.
        step: its name.
        state: for `write_state`.
        save_models: writes generator/, and what else belongs beside it, into the folder that it is given.
        keep: how many checkpoints there are then at most.

    Raises:
        OSError: see `whole_folder`.
    """
    with whole_folder(out / f"checkpoint-{step}", out / ".checkpoint.tmp") as folder:
        save_models(folder)
        write_state(state, folder)
    # Not by their numbers: a run that began anew in its folder comes to those of the former one later.
    others = [path for number, path in checkpoints(out) if number != step]
    others.sort(key=lambda path: (path / STATE).stat().st_mtime_ns)
    for old in others[: max(0, len(others) - keep + 1)]:
        shutil.rmtree(old, ignore_errors=True)
