"""``finpercep evaluate-reward``: a reward model and the baselines, measured on known faults."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from finpercep.cli.common import (
    DEFAULT_MODEL,
    MODEL_HELP,
    DataArgument,
    DeviceOption,
    check_device,
    one_line_errors,
)
from finpercep.cli.options import refuse_given


def evaluate_reward(
    ctx: typer.Context,
    data: DataArgument,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help=f"{MODEL_HELP} Default: {DEFAULT_MODEL}."),
    ] = None,
    baselines_only: Annotated[bool, typer.Option("--baselines-only", help="Measure only the baselines.")] = False,
    split: Annotated[str, typer.Option("--split", help="Split to measure on.")] = "val",
    shift: Annotated[
        list[str] | None,
        typer.Option(
            "--shift",
            help="Change made to all images first: none, jpegQ or resizeF (such as jpeg75, resize0.7); all means none, "
            "jpeg75 and resize0.7. May be given several times.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="No-reference metric of pyiqa to compare with, a reward of your own as MODULE:NAME, a function of "
            "(images, prompts, metadata), several rewards as 'A + 0.5*B', or none. May be "
            "given several times. Default: piqe, if pyiqa is installed.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without", help="Add rows that average over all SR sources but this one. May be given several times."
        ),
    ] = None,
    intervals: Annotated[
        bool,
        typer.Option("--intervals", help="Add 95 % intervals of the three orders, CC and AUC, by resampled scenes."),
    ] = False,
    climb: Annotated[
        int,
        typer.Option(
            "--climb",
            min=0,
            help="Number of results of each SR source that are moved up the model's own score: does it pass the photo, "
            "and does what was won outlive JPEG and a resize?",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Seed for the implanted faults.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
    page: Annotated[
        Path | None,
        typer.Option("--page", help="Also write best, typical and worst cases of the model to this HTML file."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a reward model and the baselines on scenes with known faults, and print the tables.

    The exit status is 2 for an unknown model or device, and 1 for data that cannot be used.
    """
    from finpercep.evaluation.report import run
    from finpercep.models import RewardModel

    if baselines_only:
        refuse_given(ctx, "model", "climb", "page", reason="without --baselines-only")
    device = check_device(device)
    if model and len(model) > 1:
        print(f"--model: expected one, got {', '.join(model)}; measure one after the other", file=sys.stderr)
        raise typer.Exit(2)
    name = model[0] if model else DEFAULT_MODEL
    with one_line_errors(2, ValueError, OSError, ImportError):
        reward = None if baselines_only else RewardModel.from_pretrained(name).to(device)
    with one_line_errors(1, ValueError, OSError, RuntimeError, ImportError):
        run(
            data,
            model=reward,
            name=None if baselines_only else name,
            split=split,
            shifts=shift or ["none"],
            metrics=None if metric is None else [name for name in metric if name != "none"],
            without=without or [],
            intervals=intervals,
            climb=climb,
            seed=seed,
            json_file=json_file,
            page=page,
            device=device,
        )
