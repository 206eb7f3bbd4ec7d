"""The command line: a thin door. Everything heavy is imported inside the commands, so help is instant."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finpercep.cli.make_dataset import make_dataset
from finpercep.cli.training import (
    DeviceOption,
    check_device,
    evaluate_reward,
    one_line_errors,
    train_reward,
)

if TYPE_CHECKING:
    from rich.console import Console

    from finpercep.engine.files import FileScore
    from finpercep.models import RewardModel

DEFAULT_MODEL = "finpercep-tiny"

app = typer.Typer(
    name="finpercep",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Score images the way a careful eye does: how good (a score), and where they fail (a map).",
)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model name, folder, or Hugging Face id.", show_default=True)
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves torch's choice.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from finpercep import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


@app.command()
def score(
    paths: Annotated[list[str], typer.Argument(help="Image files, folders (searched whole) or globs.")],
    model: ModelOption = DEFAULT_MODEL,
    maps: Annotated[
        Path | None,
        typer.Option(
            "--maps",
            help="Write each map over its photo as PNG here: purple is slightly, yellow badly degraded.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per file and line, and nothing else, on stdout.")
    ] = False,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Score images and map their faults.

    The score lies in [0, 1], higher is better. The map lies in [0, 1], 1 is degraded; its mean and the mean
    of its worst 1 % of pixels are printed ("-", with --json null, for RM_0, which has no map). Results appear
    in order, as they are made.

    A file that cannot be scored gives one line "path: reason" on stderr, and with --json also an object with
    "path" and "error" on stdout, so that there is one line per file. The others are still scored, and the
    exit status is 1. An unknown model ends with 2, Ctrl-C with 130.
    """
    from rich.console import Console

    from finpercep.engine.files import score_files

    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    files, failures = _expand(paths)
    reward = _load_model(model, device, threads) if files else None
    if maps is not None and reward is not None and reward.decoder is None:
        print(f"--maps: expected a model with a map, {model} is RM_0 and has none", file=sys.stderr)
        raise typer.Exit(2)
    show = _json_line if as_json else _table_row
    results = score_files(reward, files, maps=maps) if reward is not None else iter(())
    done = failed = 0
    try:
        for result in _with_progress([*failures], results, len(failures) + len(files), errors):
            done += 1
            failed += result.error is not None
            if result.error is not None:
                errors.print(f"{result.path}: {result.error}")
            show(result, done - failed == 1)
    except KeyboardInterrupt:
        print(f"interrupted after {done} of {len(failures) + len(files)} files", file=sys.stderr)
        raise typer.Exit(130) from None
    raise typer.Exit(1 if failed else 0)


@app.command()
def info() -> None:
    """Show versions, the device, the compiled operators and the models at hand."""
    from finpercep.cli.info import print_info

    print_info()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the page and its pictures.")] = Path("demo"),
    model: ModelOption = DEFAULT_MODEL,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Score photos, super-resolved versions of them and implanted faults; write a page to look at."""
    from finpercep.demo.run import run_demo

    with one_line_errors(2, ImportError, OSError):
        run_demo(_load_model(model, device, threads), out, model)


app.command()(train_reward)
app.command()(evaluate_reward)
app.command()(make_dataset)


def main() -> None:
    """Entry point of the ``finpercep`` command."""
    app()


def _expand(arguments: Iterable[str]) -> tuple[list[Path], list[FileScore]]:
    """Every argument by itself, so that one folder without images does not stop the others."""
    from finpercep.engine.files import FileScore
    from finpercep.io.images import ImageError, expand_paths

    files: list[Path] = []
    failures = []
    for argument in arguments:
        try:
            files += expand_paths([argument])
        except ImageError as error:
            failures.append(FileScore(Path(argument), error=str(error).removeprefix(f"{argument}: ")))
    return (expand_paths(files) if files else []), failures


def _load_model(name: str, device: str, threads: int) -> RewardModel:
    import torch

    from finpercep.models import RewardModel

    if threads:
        torch.set_num_threads(threads)
    device = check_device(device)
    with one_line_errors(2, ValueError, OSError, RuntimeError):
        return RewardModel.from_pretrained(name).to(device)


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
    from rich.text import Text

    console = _console()
    if result.error is None:
        if first:
            console.print(Text(" score   map mean   map worst   image", style="bold"))
        mean, worst = (
            "     -" if math.isnan(value) else f"{value:6.4f}" for value in (result.map_mean, result.map_worst)
        )
        row = f"{result.score:6.4f}     {mean}      {worst}   {_printable(result.path)}"
        console.print(Text(row), soft_wrap=True)


def _printable(path: Path) -> str:
    """A file name as the terminal can show it: names need not be valid text."""
    encoding = sys.stdout.encoding or "utf-8"
    return str(path).encode(encoding, "backslashreplace").decode(encoding)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _with_progress(
    failures: list[FileScore], results: Iterator[FileScore], total: int, console: Console
) -> Iterator[FileScore]:
    """Show a bar on stderr if that is a terminal and stdout is not: there the rows are the progress."""
    yield from failures
    if total < 2 or not sys.stderr.isatty() or sys.stdout.isatty():
        yield from results
        return
    from rich.progress import Progress

    # rich would by default send what is printed on stdout through its own console, which is stderr here
    with Progress(console=console, transient=True, redirect_stdout=False) as bar:
        yield from bar.track(results, total=total - len(failures), description="scoring")


if __name__ == "__main__":
    main()
