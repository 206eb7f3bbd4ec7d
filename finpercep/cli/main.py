"""The command line: a thin door. Everything heavy is imported inside the commands, so that help is instant."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from finpercep.cli.bench import bench
from finpercep.cli.demo import demo
from finpercep.cli.evaluate_reward import evaluate_reward
from finpercep.cli.export import export
from finpercep.cli.info import info
from finpercep.cli.make_dataset import MakeDataset, make_dataset
from finpercep.cli.output import checked_output
from finpercep.cli.pack import pack
from finpercep.cli.profile import profile
from finpercep.cli.score import score
from finpercep.cli.serve import Serve, serve
from finpercep.cli.train_reward import TrainReward, train_reward
from finpercep.cli.train_rl import train_rl
from finpercep.runs.memory import keep_freed_memory

app = typer.Typer(
    name="finpercep",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Score images the way a careful eye does: how good (a score), and where they fail (a map).",
)


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
    if "" not in sys.path:
        sys.path.append("")  # for MODULE:NAME of one's own; what is installed comes first


app.command()(score)
app.command()(profile)
app.command()(export)
app.command()(bench)
app.command(cls=Serve)(serve)
app.command()(info)
app.command()(demo)
app.command(cls=TrainReward)(train_reward)
app.command()(evaluate_reward)
app.command(cls=MakeDataset)(make_dataset)
app.command()(pack)
app.command()(train_rl)


def main() -> None:
    """Entry point of the ``finpercep`` command."""
    keep_freed_memory()
    with checked_output():
        app()


if __name__ == "__main__":
    main()
