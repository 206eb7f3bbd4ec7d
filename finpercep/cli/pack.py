"""``finpercep pack``: training sets as one small folder, for a machine to which little can be carried."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from finpercep.cli.common import one_line_errors

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}


def pack(
    data: Annotated[
        list[Path], typer.Argument(help="Folders with an index.jsonl (one scene per line), of different names.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; --limit holds for all that is in it.")],
    limit: Annotated[str, typer.Option("--limit", help="Most that the folder may take: 40MB, 500kB, …")] = "40MB",
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Split to take. May be given several times. Default: train."),
    ] = None,
) -> None:
    """Write training sets as one folder of a given size, which train-reward reads.

    Photos and results become AVIF 4:4:4 at the best quality that fits; low-resolution versions are left out. The same
    command goes on where it was stopped.
    """
    from rich.console import Console

    from finpercep.data import packing
    from finpercep.runs.progress import progress_bar

    with one_line_errors(2, ValueError, OSError, ImportError):
        size = _bytes(limit)
        console = Console(stderr=True)
        with progress_bar(console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("packing", total=None)
            packed = packing.pack(
                data,
                out,
                size,
                splits=tuple(split or ["train"]),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    print(
        f"{out}: {packed.scenes} scenes, {packed.images} images, {packed.size / 1e6:.1f} MB, quality {packed.quality}, "
        f"{packed.psnr:.1f} dB on a sample"
    )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)B?", text.strip(), flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"--limit: expected a size such as 40MB or 500kB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])
