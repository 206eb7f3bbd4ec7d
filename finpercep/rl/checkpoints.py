"""`checkpoint-N` folders: each whole or absent, the last few kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finpercep.runs.state import STATE, write_state

_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(out: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints of a run that have a state, the latest step last."""
    found = [(match, path) for path in out.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found if (path / STATE).is_file())


def write_checkpoint(
    out: Path, step: int, state: dict[str, Any], save_generator: Callable[[Path], None], keep: int
) -> None:
    """Write `checkpoint-<step>` with state.pt and generator/, and remove all but the `keep` that were written last.

    Raises:
        OSError: a full disk, no permission; what was there before stays.
    """
    folder, unfinished = out / f"checkpoint-{step}", out / ".checkpoint.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        save_generator(unfinished / "generator")
        write_state(state, unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    # Not by their numbers: a run that began anew in its folder comes to those of the former one later.
    others = [path for number, path in checkpoints(out) if number != step]
    others.sort(key=lambda path: (path / STATE).stat().st_mtime_ns)
    for old in others[: max(0, len(others) - keep + 1)]:
        shutil.rmtree(old, ignore_errors=True)
