"""The commands that train and measure reward models, and how every command ends on an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

DataArgument = Annotated[
    Path,
    typer.Argument(
        help="A data set that make-dataset made, or a folder with index.jsonl (one scene a line: split, id, gt, sr) "
        "and the images in SPLIT/ID/."
    ),
]


DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …")]


def pick_device(name: str) -> str:
    """The device that "auto" means here; other names as they are."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def check_device(name: str) -> str:
    """`pick_device`, or the end of the command where there is no such device."""
    import torch

    device = pick_device(name)
    with one_line_errors(2, RuntimeError, AssertionError):  # torch asserts that it has CUDA
        torch.empty(0, device=device)
    return device


@contextmanager
def one_line_errors(status: int, *kinds: type[Exception]) -> Iterator[None]:
    """Turn the expected kinds of errors into their message on stderr, in one line, and an exit status."""
    try:
        yield
    except kinds as error:
        message = str(error).strip() or type(error).__name__
        if "Traceback (most recent call last)" in message:  # of a worker process: what it raised comes last
            message = message.splitlines()[-1].partition(": ")[2]
        print(" ".join(message.split()), file=sys.stderr)
        raise typer.Exit(status) from None


def train_reward(
    ctx: typer.Context,
    data: DataArgument,
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder of the run: the model, its state for resuming, TensorBoard events."),
    ],
    anchor: Annotated[
        str | None,
        typer.Option(
            "--anchor",
            help="RM_0: folder of one, or of a CLIP-IQA; or finpercep-vit-b-16, finpercep-vit-l-14 for CLIP-IQA on "
            "that CLIP, which needs --init. Without it, RM_0 itself (no map) is trained.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            help="Model to go on from, with a new schedule: folder, name or hub id. It keeps its width and gate.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Updates in all.")] = 3000,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Triplets in a step.")] = 8,
    crop: Annotated[int, typer.Option("--crop", min=16, help="Side of the square crops, pixels.")] = 192,
    lr_encoder: Annotated[float, typer.Option("--lr-encoder", help="Peak learning rate of the encoder.")] = 1e-5,
    lr_new: Annotated[float, typer.Option("--lr-new", help="Peak learning rate of everything else.")] = 1e-4,
    warmup: Annotated[
        int, typer.Option("--warmup", min=0, help="Steps over which the learning rates rise to their peaks.")
    ] = 100,
    width: Annotated[str, typer.Option("--width", help="New decoder: light, full or a number of channels.")] = "light",
    gate: Annotated[
        str | None,
        typer.Option("--gate", help="How the map weighs the features: degradation, quality, residual."),
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", help="SR source not to train on; may be repeated.")
    ] = None,
    margin: Annotated[float, typer.Option("--margin", help="Both margins of the ranking loss.")] = 0.1,
    dev_every: Annotated[
        int, typer.Option("--dev-every", min=0, help="N > 0 keeps every N-th training scene out.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights and the triplets.")] = 0,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that make triplets.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves torch's choice.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Train a reward model on photos and super-resolution results of them.

    First RM_0, which only scores (no --anchor); then the full model with its map, anchored to RM_0. Around CLIP, RM_0
    is CLIP-IQA and needs no training: --anchor finpercep-vit-b-16 --init finpercep-vit-b-16. The same command with the
    same --out goes on where it was stopped, exactly; Ctrl-C saves the present step.
    """
    import torch

    from finpercep.data.triplets import TripletConfig
    from finpercep.training.losses import LossWeights
    from finpercep.training.trainer import RewardTrainConfig, train

    if threads:
        torch.set_num_threads(threads)
    device = check_device(device)
    with one_line_errors(2, ValueError):
        _refuse_unused(ctx, anchor=anchor, init=init)
    config = RewardTrainConfig(
        data=str(data),
        out=str(out),
        anchor=anchor,
        init=init,
        steps=steps,
        batch=batch,
        lr_encoder=lr_encoder,
        lr_new=lr_new,
        warmup=warmup,
        seed=seed,
        leave_out=leave_out or [],
        decoder={"width": int(width) if width.isdecimal() else width, "norm": True},
        head={} if gate is None else {"gate": gate},
        triplets=TripletConfig(crop=crop),
        loss=LossWeights(margin_sr=margin, margin_syn=margin),
        workers=workers,
        dev_every=dev_every,
        device=device,
    )
    try:
        with one_line_errors(2, ValueError, OSError, FloatingPointError, ImportError):
            train(config)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from what was last saved in {out}", file=sys.stderr)
        raise typer.Exit(130) from None


def evaluate_reward(
    data: DataArgument,
    model: Annotated[str, typer.Option("--model", "-m", help="Model name, folder, or hub id.")] = "finpercep-tiny",
    baselines_only: Annotated[bool, typer.Option("--baselines-only", help="Measure the baselines alone.")] = False,
    split: Annotated[str, typer.Option("--split", help="Split of the index.")] = "val",
    shift: Annotated[
        list[str] | None,
        typer.Option("--shift", help="none, jpegQ, resizeF (jpeg75, resize0.7), or all for those three; repeatable."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="No-reference metric of pyiqa to set beside it, or none; repeatable. Default: piqe, if pyiqa is "
            "installed.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="Add rows whose means leave this SR source out; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the implanted faults.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures there.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a reward model and the baselines on scenes with known faults, and print the tables.

    An unknown model or device ends with exit status 2, data that cannot be used with 1.
    """
    from finpercep.evaluation.report import run
    from finpercep.models import RewardModel

    device = check_device(device)
    with one_line_errors(2, ValueError, OSError, ImportError):
        reward = None if baselines_only else RewardModel.from_pretrained(model).to(device)
    with one_line_errors(1, ValueError, OSError, RuntimeError, ImportError):
        run(
            data,
            model=reward,
            name=None if baselines_only else model,
            split=split,
            shifts=shift or ["none"],
            metrics=None if metric is None else [name for name in metric if name != "none"],
            without=without or [],
            seed=seed,
            json_file=json_file,
            device=device,
        )


def _refuse_unused(ctx: typer.Context, *, anchor: str | None, init: str | None) -> None:
    """Refuse what the run would not use.

    Raises:
        ValueError: --width or --gate was given, and the model does not take it.
    """
    for name in ("width", "gate"):
        source = ctx.get_parameter_source(name)
        if source is None or source.name == "DEFAULT":
            continue
        if init is not None:
            raise ValueError(f"--{name}: expected without --init, whose model keeps its own, got both")
        if name == "width" and anchor is None:
            raise ValueError("--width: expected with --anchor: RM_0 has no decoder, got no --anchor")
