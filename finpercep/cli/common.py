"""What several commands share: options with one meaning, the device, the model, and how a command ends on an error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finpercep.cli.output import OutputError
from finpercep.io.reasons import printable

if TYPE_CHECKING:
    from finpercep.models import RewardModel
    from finpercep.runs.monitors import Monitor

DEFAULT_MODEL = "finpercep-small"
"""The embedded model that judges best; finpercep-tiny is faster."""

MODEL_HELP = "Name of a model, a folder, or a Hugging Face Hub id."
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
WandBOption = Annotated[
    str | None, typer.Option("--wandb", metavar="PROJECT", help="Also send the figures to this project of W&B.")
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=0, help="Number of CPU threads; 0 keeps torch's default.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Where the model runs: auto, cpu, cuda, cuda:1, …")]
DataArgument = Annotated[
    Path,
    typer.Argument(
        help="A data set made by make-dataset, or a folder with an index.jsonl (one scene per line: split, id, gt, sr) "
        "and its images in SPLIT/ID/."
    ),
]


@contextmanager
def one_line_errors(status: int, *kinds: type[Exception]) -> Iterator[None]:
    """Turn the expected kinds of errors into their message on stderr, in one line, and an exit status."""
    try:
        yield
    except kinds as error:
        if isinstance(error, (BrokenPipeError, OutputError, typer.Exit)):  # of stdout, or an end already: for `main`
            raise
        print(printable(_message(error)), file=sys.stderr)
        raise typer.Exit(status) from None


def _message(error: Exception) -> str:
    """What is wrong, in one line that starts with the file or argument it is about."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    message = str(error).strip() or type(error).__name__
    if "Traceback (most recent call last)" in message:  # of a worker process: what it raised comes last
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split())


def set_threads(threads: int) -> None:
    """Number of CPU threads of torch; 0 keeps its default."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def pick_device(name: str) -> str:
    """The device that "auto" means here; other names as they are."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def check_device(name: str) -> str:
    """`pick_device`, where float32 is float32 from here on; the end of the command where there is no such device."""
    from finpercep.runs import devices

    device = pick_device(name)
    try:
        devices.check_device(device)
        devices.take_full_float32(device)
    except ValueError as error:
        print(f"--{error}", file=sys.stderr)
        raise typer.Exit(2) from None
    return device


def trackers_of(out: str | Path, project: str | None) -> list[Monitor]:
    """TensorBoard's events in the run's folder and, with a project, Weights & Biases.

    Raises:
        ImportError: one of them is not installed.
    """
    from finpercep.runs.trackers import TensorBoard, WeightsAndBiases

    return [TensorBoard(out), *([WeightsAndBiases(out, project)] if project else [])]


def load_model(name: str, device: str, threads: int) -> RewardModel:
    """The model on its device, or the end of the command with status 2."""
    from finpercep.models import RewardModel

    set_threads(threads)
    device = check_device(device)
    with one_line_errors(2, ValueError, OSError, RuntimeError):
        return RewardModel.from_pretrained(name).to(device)
