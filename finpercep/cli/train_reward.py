"""``finpercep train-reward``: a reward model from photos and super-resolved versions of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finpercep.cli.common import (
    DeviceOption,
    ThreadsOption,
    WandBOption,
    check_device,
    one_line_errors,
    set_threads,
    trackers_of,
)
from finpercep.cli.options import given, settings_command
from finpercep.io.reasons import one_line

if TYPE_CHECKING:
    from finpercep.training.config import RewardTrainConfig

TrainReward = settings_command(
    "finpercep.training.config:RewardTrainConfig",
    "finpercep.data.triplets:TripletConfig",
    "finpercep.training.losses:LossWeights",
    "finpercep.training.climbing:ClimbConfig",
    after="out",
)


def train_reward(
    ctx: typer.Context,
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Data sets made by make-dataset, or folders with an index.jsonl (one scene per line: split, id, gt, "
            "sr) and its images in SPLIT/ID/."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for the run: the model, the state to resume from, and TensorBoard events."),
    ],
    width: Annotated[
        str | None,
        typer.Option(
            "--width",
            help="Width of a new decoder: light, full, or a number of channels. Default: light.",
            show_default=False,
        ),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option("--gate", help="How the map weights the features: degradation, quality or residual."),
    ] = None,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    wandb: WandBOption = None,
) -> None:
    """Train a reward model on photos and super-resolved versions of them.

    First train RM_0, which only gives a score (no --anchor); then the full model with its map, anchored to RM_0. With
    CLIP, RM_0 is CLIP-IQA and needs no training: --anchor finpercep-vit-b-16 --init finpercep-vit-b-16. With --init
    finpercep-vit-l-14, the paper's model, the defaults are the paper's: --batch 64 --epochs 50. The same command with
    the same --out resumes a stopped run exactly where it was; Ctrl-C saves the current step.
    """
    from finpercep.data.triplets import TripletConfig
    from finpercep.runs.progress import Screen
    from finpercep.training.climbing import ClimbConfig
    from finpercep.training.config import RewardTrainConfig
    from finpercep.training.losses import LossWeights
    from finpercep.training.trainer import train

    set_threads(threads)
    device = check_device(device)
    with one_line_errors(2, ValueError):
        loss = LossWeights(**given(ctx, LossWeights))
        config = RewardTrainConfig(
            data=tuple(map(str, data)),
            out=str(out),
            **_settings(given(ctx, RewardTrainConfig)),
            triplets=TripletConfig(**given(ctx, TripletConfig)),
            loss=dataclasses.replace(loss, margin_syn=loss.margin_sr),  # --margin is both
            climb=ClimbConfig(**given(ctx, ClimbConfig)),
            device=device,
        )
        _refuse_unused(config, width=width, gate=gate)
    if width is not None:
        config.decoder["width"] = int(width) if width.isdecimal() else width
    if gate is not None:
        config.head["gate"] = gate
    try:
        errors = (ValueError, OSError, FloatingPointError, ImportError, MemoryError)
        with one_line_errors(2, *errors), _out_of_memory():
            train(config, [Screen(), *trackers_of(out, wandb)])
    except KeyboardInterrupt:
        print(f"interrupted; run the same command again to continue from what was last saved in {out}", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"the model is in {out}")


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """Say what takes less memory, where there is none left.

    Raises:
        MemoryError: in place of what torch, or Python, raises then.
    """
    from finpercep.engine.batches import is_out_of_memory

    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = one_line(error)
        raise MemoryError(
            f"memory: expected room for a step, got {reason}; a smaller --batch or --crop, or fewer --workers, take "
            "less, and the same command goes on from what was last saved"
        ) from error


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """What was given, over the paper's settings where it is the paper's model that is trained.

    Raises:
        ValueError: --steps and --epochs were given.
    """
    from finpercep.training.config import paper_settings

    if {"steps", "epochs"} <= given.keys():
        raise ValueError(f"--epochs: expected without --steps, got both ({given['epochs']} and {given['steps']})")
    settings = paper_settings(given.get("init")) | given
    if "steps" in given:
        settings.pop("epochs", None)
    return settings


def _refuse_unused(config: RewardTrainConfig, *, width: str | None, gate: str | None) -> None:
    """Refuse what the run would not use.

    Raises:
        ValueError: --width or --gate was given, and the model does not take it.
    """
    from finpercep.models.presets import PRESETS

    if config.init in PRESETS:  # its decoder and head are new
        return
    for name, value in (("width", width), ("gate", gate)):
        if value is not None and config.init is not None:
            raise ValueError(f"--{name}: expected without --init, whose model keeps its own, got both")
    if width is not None and config.anchor is None:
        raise ValueError("--width: expected with --anchor: RM_0 has no decoder, got no --anchor")
