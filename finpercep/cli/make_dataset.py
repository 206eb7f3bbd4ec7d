"""``finpercep make-dataset``: samples with local faults, and maps of them, from photos and super-resolution results."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finpercep.cli.training import one_line_errors

if TYPE_CHECKING:
    from finpercep.data.dataset.shards import ShardReport


def make_dataset(
    out: Annotated[Path, typer.Option("--out", help="Folder of the data set; the same command goes on in it.")],
    gt: Annotated[
        str | None, typer.Option("--gt", help="Photos: a folder, or a pattern in quotes ('*/gt.png').")
    ] = None,
    sr: Annotated[
        list[str] | None,
        typer.Option(
            "--sr",
            help="Source of super-resolved versions; repeatable. folder:NAME=DIR (or a pattern), spandrel:FILE, "
            "diffusers:ID, builtin:NAME, builtin:all.",
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option("--lr", help="Low-resolution versions for models, a folder or pattern; else they are made."),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Offline: photos of scikit-image and built-in sources.")] = False,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            "--mask",
            help="Kind of masks; repeatable, drawn equally often. random, boxes, polygons, strokes, blobs, "
            "superpixels, sam:FILE, sam-hf:ID. Default: random.",
        ),
    ] = None,
    masks: Annotated[int, typer.Option("--masks", min=1, help="Samples per photo and source.")] = 4,
    area: Annotated[
        tuple[float, float],
        typer.Option("--area", help="Share of the image that a mask covers, low and high."),
    ] = (0.03, 0.4),
    feathered: Annotated[float, typer.Option("--feathered", help="Share of masks with a soft edge.")] = 0.25,
    features: Annotated[
        str, typer.Option("--features", help="For the target: filters, vit:ID, reward:ID, none.")
    ] = "filters",
    alpha: Annotated[float, typer.Option("--alpha", help="Weight of pixels against features.")] = 0.25,
    normalize: Annotated[
        str, typer.Option("--normalize", help="Of the target: scale, minmax, percentile, none.")
    ] = "scale",
    target_scale: Annotated[
        float, typer.Option("--target-scale", help="Difference that counts as fully degraded (scale).")
    ] = 0.08,
    restrict: Annotated[bool, typer.Option("--restrict", help="Target 0 outside the mask.")] = False,
    scale: Annotated[int, typer.Option("--scale", min=1, help="Of the super-resolution models.")] = 4,
    degradation: Annotated[
        Path | None,
        typer.Option("--degradation", help="YAML or JSON with options named as in BasicSR / Real-ESRGAN."),
    ] = None,
    crop: Annotated[int, typer.Option("--crop", min=0, help="Side of random crops; 0: whole photos.")] = 0,
    crops: Annotated[int, typer.Option("--crops", min=1, help="Crops per photo.")] = 1,
    val_share: Annotated[float, typer.Option("--val-share", help="Share of photos held out.")] = 0.1,
    photos_per_shard: Annotated[int, typer.Option("--photos-per-shard", min=1, help="Photos in a file.")] = 8,
    tile: Annotated[int, typer.Option("--tile", min=0, help="Tile of models, low-resolution pixels; 0: none.")] = 256,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of diffusers pipelines.")] = 50,
    sam_points: Annotated[int, typer.Option("--sam-points", min=1, help="SAM's prompts per side.")] = 32,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out what is missing, damaged or of another size.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of everything.")] = 0,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0: one per core, 8 at most.")] = 0,
    engine: Annotated[str, typer.Option("--engine", help="local, or ray (a cluster: RAY_ADDRESS).")] = "local",
    device: Annotated[str, typer.Option("--device", help="Of the models: cpu, cuda, cuda:1, …")] = "cpu",
) -> None:
    """Make a training set: faults of real models, implanted into photos, with maps of where they are.

    Writes Parquet files that `datasets.load_dataset(OUT)` and `finpercep train-reward OUT` read, a manifest, and
    preview.html to look at. A stopped run goes on with the same command; the same inputs, settings and seed give the
    same bytes. What cannot be read or does not fit ends with one line and exit status 2, and nothing is lost.
    """
    from finpercep.data.dataset import make
    from finpercep.data.dataset.config import MakeConfig
    from finpercep.data.degradations.degradations import DegradationConfig

    with one_line_errors(2, ValueError, OSError, RuntimeError, ImportError):
        if demo:
            gt, sr = _demo_inputs(out, gt, sr)
        if gt is None or not sr:
            raise ValueError("expected --gt and at least one --sr, or --demo")
        config = MakeConfig(
            seed=seed,
            masks=tuple(mask or ["random", *(["superpixels"] if demo else [])]),
            masks_per_image=masks,
            area=area,
            feathered=feathered,
            features=features,
            alpha=alpha,
            normalize=normalize,
            target_scale=target_scale,
            restrict=restrict,
            scale=scale,
            crop=crop,
            crops=crops,
            val_share=val_share,
            photos_per_shard=photos_per_shard,
            skip_bad=skip_bad,
            degradation=DegradationConfig() if degradation is None else _read_options(degradation),
            tile=tile,
            steps=steps,
            points_per_side=sam_points,
        )
        if not workers:
            workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
        with _Progress() as bar:
            try:
                made = make.make_dataset(
                    gt, sr, out, config, lr=lr, workers=workers, engine=engine, device=device, progress=bar.update
                )
            except KeyboardInterrupt:
                print(f"interrupted; the same command goes on in {out}", file=sys.stderr)
                raise typer.Exit(130) from None
        _print_summary(made, bar.seconds)


def _demo_inputs(out: Path, gt: str | None, sr: list[str] | None) -> tuple[str, list[str]]:
    """Photos of scikit-image, written beside the data set, and every built-in source."""
    if gt is not None or sr:
        raise ValueError("demo: expected neither --gt nor --sr, which it brings itself")
    from finpercep.data.demo_photos import write_demo_photos

    folder = out.with_name(f"{out.name}-photos")
    write_demo_photos(folder)
    return str(folder), ["builtin:all"]


def _read_options(path: Path) -> Any:
    import yaml

    from finpercep.data.degradations.degradations import DegradationConfig

    try:
        options = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML or JSON, got {' '.join(str(error).split())[:200]}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path}: expected options by name, got {type(options).__name__}")
    return DegradationConfig.from_options(options)


class _Progress:
    """A bar on stderr over shards, with samples per second; lines where stderr is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console)
        self.task = self.bar.add_task("files", total=None)
        self.rows = 0
        self.seconds = 0.0

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, done: int, total: int, report: ShardReport | None) -> None:
        import time

        if report is None:
            self.started = time.perf_counter()
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


def _print_summary(made: Any, seconds: float) -> None:
    """Rows, where they are, and the throughput of each stage."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    stage_seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for report in made.reports:
        stage_seconds.update(report.seconds)
        counts.update(report.counts)
    if stage_seconds:
        table = Table("stage", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("images", "seconds", "per second and worker"):
            table.add_column(column, justify="right")
        for name, spent in sorted(stage_seconds.items(), key=lambda item: -item[1]):
            table.add_row(name, str(counts[name]), f"{spent:.1f}", f"{counts[name] / max(spent, 1e-9):.1f}")
        console.print(table)
        rows = sum(report.rows for report in made.reports)
        console.print(f"\n{rows} samples in {seconds:.1f} s: {rows / max(seconds, 1e-9):.1f} per second")
    rows = made.manifest["rows"]
    console.print(f"{rows['train']} train and {rows['validation']} validation samples in {made.folder}", soft_wrap=True)
    for line in made.manifest["left_out"]:
        print(f"left out: {line}", file=sys.stderr)
    console.print(f"page   {made.folder / 'preview.html'}", soft_wrap=True)
