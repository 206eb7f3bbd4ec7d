"""``finpercep score``: the score of images, and where they fail."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finpercep.cli.common import (
    DEFAULT_MODEL,
    DeviceOption,
    ModelOption,
    ThreadsOption,
    load_model,
    one_line_errors,
)
from finpercep.cli.options import refuse_given
from finpercep.cli.output import quiet_libraries
from finpercep.io.image_error import ImageError
from finpercep.io.image_paths import IMAGE_SUFFIXES, expand_paths
from finpercep.io.reasons import printable

if TYPE_CHECKING:
    from rich.console import Console

    from finpercep.engine.files import FileScore
    from finpercep.io.parquet import Row
    from finpercep.models import RewardModel


class Engine(str, Enum):
    """What scores: this process, or workers on a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


def score(
    ctx: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(help="Image files, folders (searched recursively) or glob patterns; a file is scored once."),
    ],
    column: Annotated[
        str | None,
        typer.Option(
            "--column",
            help="The paths are Parquet files, or folders with some (*.parquet), and this column of theirs is scored: "
            "image files as bytes, or what datasets writes for images.",
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    maps: Annotated[
        Path | None,
        typer.Option(
            "--maps",
            help="Folder for overlays: each map drawn over its photo, as a PNG; purple marks slight, yellow severe "
            "degradation.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line for each file, and nothing else, on stdout.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits for an image whatever it is scored with.")
    ] = False,
    engine: Annotated[
        Engine,
        typer.Option(
            "--engine", help="local, or ray: on the Ray cluster that RAY_ADDRESS names, else on one of this machine."
        ),
    ] = Engine.LOCAL,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Of --engine ray, at most; 0 is every core or GPU of the cluster.")
    ] = 0,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Score images and map their faults.

    The score lies in [0, 1]; higher is better. The map lies in [0, 1]; 1 means degraded. The table shows its mean and
    the mean of its worst 1 % of pixels ("-", or null with --json, for a model without a map, such as RM_0). Results
    are printed in the order of the paths, sorted, as soon as they are ready.

    A file that cannot be scored adds one line "path: reason" to stderr (with --json also an object with "path" and
    "error" to stdout, so that every file has its line); the other files are still scored, and the exit status is 1.
    It is 2 for an unknown model, and 130 after Ctrl-C.

    With --column every row of the Parquet files (extra data) counts as a file; its path is its "id", or without a
    column of that name the Parquet file's with the number of the row, "a.parquet/0".

    With --engine ray (extra ray) the machines of a cluster share the files, which all of them must see under these
    names; the results are those of --deterministic, byte for byte.
    """
    from rich.console import Console

    if engine is Engine.LOCAL:
        refuse_given(ctx, "workers", reason="with --engine ray")
    else:
        refuse_given(ctx, "threads", reason="with --engine local, as a worker has one core or GPU")
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    if maps is not None and maps.exists() and not maps.is_dir():
        print(f"--maps: expected a folder, got the file {maps}", file=sys.stderr)
        raise typer.Exit(2)
    with one_line_errors(2, ImportError):
        files, failures = _expand(paths) if column is None else _rows(paths, column)
    if column is None:
        _note_sets(paths, errors)
    # The machines of a cluster compute: this one needs no device, and no more of the model than that it can be loaded.
    reward = load_model(model, "cpu" if engine is Engine.RAY else device, threads) if files else None
    if maps is not None and reward is not None and not reward.has_map:
        print(f"--maps: expected a model with a map, {model} is RM_0 and has none", file=sys.stderr)
        raise typer.Exit(2)
    show = _json_line if as_json else _table_row
    results: Iterator[FileScore] = iter(())
    if reward is not None and engine is Engine.RAY:
        results = _on_ray(model, files, maps, device, workers)
    elif reward is not None:
        results = _in_this_process(reward, files, maps, deterministic)
    done = failed = 0
    try:
        # libtiff and Pillow warn: one line per file is ours
        with one_line_errors(2, ImportError, ValueError), one_line_errors(1, RuntimeError), quiet_libraries():
            for result in _with_progress([*failures], results, len(failures) + len(files), errors):
                done += 1
                failed += result.error is not None
                if result.error is not None:
                    errors.print(printable(f"{result.path}: {result.error}"))
                show(result, done - failed == 1)
    except KeyboardInterrupt:
        print(f"interrupted after {done} of {len(failures) + len(files)} files", file=sys.stderr)
        raise typer.Exit(130) from None
    raise typer.Exit(1 if failed else 0)


def _in_this_process(
    reward: RewardModel, files: list[Path] | list[Row], maps: Path | None, deterministic: bool
) -> Iterator[FileScore]:
    from finpercep.engine.files import score_files
    from finpercep.engine.scorer import Scorer

    scorer = Scorer(reward, deterministic=deterministic)
    yield from score_files(scorer, files, maps=maps)
    scorer.close()


def _on_ray(
    model: str, files: list[Path] | list[Row], maps: Path | None, device: str, workers: int
) -> Iterator[FileScore]:
    from finpercep.engine.on_ray import score_files_on_ray

    name = os.path.abspath(model) if os.path.isdir(model) else model
    return score_files_on_ray(name, files, maps=maps, device=device, workers=workers)


def _expand(arguments: Iterable[str], suffixes: Collection[str] = IMAGE_SUFFIXES) -> tuple[list[Path], list[FileScore]]:
    """Every argument by itself, so that one folder without images does not stop the others."""
    files: dict[str, Path] = {}
    failures = []
    for argument in arguments:
        unreadable: list[OSError] = []
        try:
            for path in expand_paths([argument], suffixes, unreadable.append):
                files.setdefault(os.path.abspath(path), path)
        except ImageError as error:
            if not unreadable:
                failures.append(_unusable(argument, error))
        failures += [_unreadable(folder) for folder in unreadable]
    return sorted(files.values()), failures


def _rows(arguments: Iterable[str], column: str) -> tuple[list[Row], list[FileScore]]:
    """The rows of every Parquet file, file by file."""
    from finpercep.io.parquet import PARQUET_SUFFIXES, find_rows

    files, failures = _expand(arguments, PARQUET_SUFFIXES)
    rows: list[Row] = []
    for file in files:
        try:
            rows += find_rows(file, column)
        except ImageError as error:
            failures.append(_unusable(file, error))
    return rows, failures


def _note_sets(arguments: Iterable[str], errors: Console) -> None:
    """Say that a data set's Parquet files are not scored: that leaves nothing of it but the preview."""
    for argument in arguments:
        folder = Path(argument).expanduser()
        if folder.is_dir() and any(any(folder.glob(pattern)) for pattern in ("*.parquet", "data/*.parquet")):
            errors.print(printable(f"{argument}: its Parquet files are not scored without --column"))


def _unusable(given: str | Path, error: ImageError) -> FileScore:
    """The error starts with what was given, or with what "~" in it stands for."""
    from finpercep.engine.files import FileScore

    reason = str(error).removeprefix(f"{given}: ").removeprefix(f"{os.path.expanduser(given)}: ")
    return FileScore(Path(given), error=reason)


def _unreadable(error: OSError) -> FileScore:
    from finpercep.engine.files import FileScore

    return FileScore(Path(error.filename), error=f"expected a folder that can be read, got {error.strerror}")


def _json_line(result: FileScore, first: bool) -> None:
    line: dict[str, Any] = {"path": str(result.path)}
    if result.error is not None:
        line["error"] = result.error
    else:
        figures = {name: getattr(result, name) for name in ("score", "map_mean", "map_worst")}
        line |= {name: None if math.isnan(value) else round(value, 6) for name, value in figures.items()}
    print(json.dumps(line), flush=True)  # ASCII: any file name, in any locale


def _table_row(result: FileScore, first: bool) -> None:
    """Rows of fixed width, the path last: a table that can stream and that no path length breaks."""
    from rich.console import Console
    from rich.text import Text

    if result.error is not None:
        return
    console = Console(highlight=False)
    if first:
        console.print(Text(" score   map mean   map worst   image", style="bold"))
    mean, worst = ("     -" if math.isnan(value) else f"{value:6.4f}" for value in (result.map_mean, result.map_worst))
    row = f"{result.score:6.4f}     {mean}      {worst}   {_shown(result.path)}"
    console.print(Text(row), soft_wrap=True)


def _shown(path: Path | str) -> str:
    """A file name as the terminal can show it: names need not be valid text."""
    encoding = sys.stdout.encoding or "utf-8"
    return printable(str(path)).encode(encoding, "backslashreplace").decode(encoding)


def _with_progress(
    failures: list[FileScore], results: Iterator[FileScore], total: int, console: Console
) -> Iterator[FileScore]:
    """Show a bar on stderr if that is a terminal and stdout is not: there the rows are the progress."""
    yield from failures
    if total < 2 or not sys.stderr.isatty() or sys.stdout.isatty():
        yield from results
        return
    from finpercep.runs.progress import progress_bar

    # rich would by default send what is printed on stdout through its own console, which is stderr here
    with progress_bar(console, transient=True, redirect_stdout=False) as bar:
        yield from bar.track(results, total=total - len(failures), description="scoring")
