"""``finpercep demo``: sample photos and faults in them, scored and shown on a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from finpercep.cli.common import (
    DEFAULT_MODEL,
    DeviceOption,
    ModelOption,
    ThreadsOption,
    load_model,
    one_line_errors,
)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the page and its pictures.")] = Path("demo"),
    model: ModelOption = DEFAULT_MODEL,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    rl_steps: Annotated[
        int | None,
        typer.Option("--rl-steps", min=0, help="Updates of the embedded generator at the end; 0 leaves them out."),
    ] = None,
) -> None:
    """Score sample photos, super-resolved versions of them, and photos with implanted faults, let the embedded
    generator climb the reward, and write a page that shows the results.
    """
    from finpercep.demo.climb import STEPS
    from finpercep.demo.run import run_demo

    loaded = load_model(model, device, threads)
    if not loaded.has_map:
        print(f"--model: expected a model with a map, {model} is RM_0 and has none", file=sys.stderr)
        raise typer.Exit(2)
    with one_line_errors(2, ImportError, OSError):
        run_demo(loaded, out, model, STEPS if rl_steps is None else rl_steps)
