"""``finpercep make-dataset``: samples with local faults, and maps of them, from photos and super-resolution results."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finpercep.cli.common import one_line_errors
from finpercep.cli.options import given, settings_command
from finpercep.data.kinds import usages
from finpercep.data.sources.kinds import SOURCE_KINDS
from finpercep.io.files import read_text
from finpercep.io.reasons import printable

if TYPE_CHECKING:
    from finpercep.data.dataset.config import MakeConfig
    from finpercep.data.dataset.make import MadeDataset
    from finpercep.data.dataset.shards import ShardReport

MakeDataset = settings_command("finpercep.data.dataset.config:MakeConfig", after="demo")


def make_dataset(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder for the data set; the same command continues there.")],
    gt: Annotated[
        str | None, typer.Option("--gt", help="Photos: a folder, or a pattern in quotes ('*/gt.png').")
    ] = None,
    sr: Annotated[
        list[str] | None,
        typer.Option(
            "--sr",
            help=f"Source of super-resolved versions: {usages(SOURCE_KINDS)}. May be given several times.",
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            "--lr",
            help="Low-resolution versions as input of the models: a folder or a pattern. Without it they are made from "
            "the photos.",
        ),
    ] = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Use scikit-image's photos and the built-in sources; needs no network."),
    ] = False,
    degradation: Annotated[
        Path | None,
        typer.Option(
            "--degradation", help="YAML or JSON file with degradation options, named as in BasicSR / Real-ESRGAN."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Number of processes; 0 means one per core, at most 8.")
    ] = 0,
    engine: Annotated[
        str, typer.Option("--engine", help="local or ray; ray joins the cluster at RAY_ADDRESS, or starts one here.")
    ] = "local",
    device: Annotated[str, typer.Option("--device", help="Device of the models: cpu, cuda, cuda:1, …")] = "cpu",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read all inputs and finished files to see whether any changed; without it, only those whose size or "
            "time did. What changed is made again.",
        ),
    ] = False,
) -> None:
    """Make a training set: faults of real super-resolution models, implanted into photos, with maps that show where
    they are.

    Writes Parquet files that `datasets.load_dataset(OUT)` and `finpercep train-reward OUT` read, a manifest, and a
    preview.html to check by eye. Run the same command again to continue a stopped run; the same inputs, settings and
    seed give the same bytes. If an input cannot be read or does not fit, the command ends with one line and exit
    status 2, and keeps what it has written.
    """
    from finpercep.data.dataset import make

    with one_line_errors(2, ValueError, OSError, RuntimeError, ImportError):
        if demo:
            gt, sr = _demo_inputs(out, gt, sr)
        if gt is None or not sr:
            raise ValueError("expected --gt and at least one --sr, or --demo")
        config = _config(ctx, demo, degradation)
        if not workers:
            workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
        with _Progress() as bar:
            try:
                made = make.make_dataset(
                    *(gt, sr, out, config),
                    lr=lr,
                    workers=workers,
                    engine=engine,
                    device=device,
                    verify=verify,
                    progress=bar.update,
                )
            except KeyboardInterrupt:
                print(printable(f"interrupted; run the same command again to continue in {out}"), file=sys.stderr)
                raise typer.Exit(130) from None
        _print_summary(made, bar.seconds)


def _config(ctx: typer.Context, demo: bool, degradation: Path | None) -> MakeConfig:
    from finpercep.data.dataset.config import MakeConfig

    options: dict[str, Any] = given(ctx, MakeConfig)
    if demo:
        options.setdefault("masks", ("random", "superpixels"))
    if degradation is not None:
        options["degradation"] = _read_options(degradation)
    return MakeConfig(**options)


def _demo_inputs(out: Path, gt: str | None, sr: list[str] | None) -> tuple[str, list[str]]:
    """Photos of scikit-image, written beside the data set, and every built-in source."""
    if gt is not None or sr:
        raise ValueError("--demo: expected neither --gt nor --sr, as it brings its own photos and sources")
    from finpercep.data.demo_photos import write_demo_photos

    place = out.absolute()  # "." has no name
    folder = place.with_name(f"{place.name}-photos")
    write_demo_photos(folder)
    return str(folder), ["builtin:all"]


def _read_options(path: Path) -> Any:
    import yaml

    from finpercep.data.degradations.config import DegradationConfig

    try:
        options = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML or JSON, got {' '.join(str(error).split())[:200]}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path}: expected options by name, got {type(options).__name__}")
    try:
        return DegradationConfig.from_options(options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _Progress:
    """A bar on stderr over shards, from the first on, with samples per second; lines where stderr is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        from finpercep.runs.progress import progress_bar

        self.console = Console(stderr=True, highlight=False)
        self.bar = progress_bar(self.console)
        self.task = self.bar.add_task("files", total=None)
        self.rows = 0
        self.seconds = 0.0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar.live.is_started:
            self.bar.stop()

    def update(self, done: int, total: int, report: ShardReport | None) -> None:
        if report is None:
            self.started = time.perf_counter()
            self.bar.start()
            self.bar.update(self.task, total=total, completed=done)
            if done:
                self.console.print(f"{done} of {total} files are there already")
            elif not self.console.is_terminal:
                self.console.print(f"{total} files to make")
            return
        self.rows += report.rows
        self.seconds = time.perf_counter() - self.started
        rate = self.rows / self.seconds
        self.bar.update(self.task, completed=done, description=f"files  {rate:.1f} samples/s")
        if not self.console.is_terminal:
            self.console.print(f"{done}/{total} {report.path}: {report.rows} samples, {rate:.1f} samples/s")


def _print_summary(made: MadeDataset, seconds: float) -> None:
    """Rows, where they are, and the throughput of each stage."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    folder = printable(str(made.folder))
    if any(report.seconds for report in made.reports):
        console.print(_stage_table(made.reports))
        rows = sum(report.rows for report in made.reports)
        console.print(f"\n{rows} samples in {seconds:.1f} s: {rows / max(seconds, 1e-9):.1f} per second")
    rows = made.manifest["rows"]
    console.print(f"{rows['train']} train and {rows['validation']} validation samples in {folder}", soft_wrap=True)
    for line in made.manifest["left_out"]:
        print(printable(f"left out: {line}"), file=sys.stderr)
    console.print(f"page   {os.path.join(folder, 'preview.html')}", soft_wrap=True)


def _stage_table(reports: list[ShardReport]) -> Any:
    from rich.table import Table

    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for report in reports:
        seconds.update(report.seconds)
        counts.update(report.counts)
    table = Table("stage", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("images", "seconds", "per second and worker"):
        table.add_column(column, justify="right")
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(name, str(counts[name]), f"{spent:.1f}", f"{counts[name] / max(spent, 1e-9):.1f}")
    return table
