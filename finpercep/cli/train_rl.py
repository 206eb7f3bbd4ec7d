"""``finpercep train-rl``: a super-resolution generator against a reward."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from finpercep.cli.common import ThreadsOption, WandBOption, check_device, one_line_errors, set_threads, trackers_of


def train_rl(
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders with an index.jsonl (one photo per line: split, id, gt, lr) and its images in SPLIT/ID/, "
            "data sets of make-dataset, photos:DIR, or lr:DIR for low-resolution images alone."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the run; the same command continues there. Default: runs/rl."),
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option("--algorithm", "-a", help="refl, dpo, grpo or nft. Default: refl.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with settings, as --print-config shows them.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, such as algorithm.steps=4 or stages.0.lr=1e-5. May be given often."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings as YAML, which --config takes, and exit.")
    ] = False,
    threads: ThreadsOption = 0,
    device: Annotated[
        str | None, typer.Option("--device", help="Where everything runs: auto, cpu, cuda, cuda:1, … Default: cpu.")
    ] = None,
    wandb: WandBOption = None,
) -> None:
    """Train a super-resolution generator by reinforcement learning against a reward, or a curriculum of rewards.

    Without more it trains the embedded generator against the embedded reward model. The same command with the same
    --out resumes a stopped run exactly where it was; Ctrl-C saves the current step.
    """
    from finpercep.rewards.remote import ServiceError
    from finpercep.rl.grpo import RatioError
    from finpercep.rl.loop import train
    from finpercep.rl.screen import RLScreen
    from finpercep.rl.settings import resolve
    from finpercep.rl.settings_yaml import as_yaml

    set_threads(threads)
    given: dict[str, Any] = {"data": [str(folder) for folder in data or []], "out": out and str(out)}
    given["algorithm"] = {"name": algorithm} if algorithm else None
    given["device"] = device and check_device(device)
    with one_line_errors(2, ValueError, OSError):
        settings = resolve(config, assignments or [], {name: value for name, value in given.items() if value})
    if print_config:
        print(as_yaml(settings), end="")
        return
    settings = replace(settings, device=check_device(settings.device))
    try:
        expected = (ValueError, OSError, FloatingPointError, ImportError, MemoryError, NotImplementedError)
        with one_line_errors(2, *expected, RatioError, ServiceError):
            train(settings, [RLScreen(), *trackers_of(settings.out, wandb)])
    except KeyboardInterrupt:
        place = settings.out
        print(f"interrupted; run the same command again to go on from what was last saved in {place}", file=sys.stderr)
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        print(f"{Path(settings.out) / 'report.html'}; the generator is in {Path(settings.out) / 'generator'}")
