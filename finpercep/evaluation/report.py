"""The tables of `finpercep evaluate-reward`: a reward model beside the baselines, and each SR source alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finpercep.data import Scene, load_scenes
from finpercep.data.identity import scenes_fingerprint
from finpercep.evaluation import baselines
from finpercep.evaluation.baselines import Judge
from finpercep.evaluation.cases_page import write_cases_page
from finpercep.evaluation.climb import CLIMB_LEGEND, Climb, climb_all, climb_figures, climb_table, picks
from finpercep.evaluation.evaluate import Evaluation, evaluate_all
from finpercep.evaluation.intervals import interval_figures, interval_table
from finpercep.evaluation.trials import SHIFTS, parse_shift
from finpercep.io.files import write_json
from finpercep.models import RewardModel, available_models
from finpercep.rewards import load_reward
from finpercep.rewards.load import PLUS
from finpercep.runs.devices import take_full_float32
from finpercep.runs.progress import progress_bar

# key of the summary -> (heading, decimals)
_COLUMNS = {
    "gt_over_sr": ("GT>SR", 3),
    "syn_over_sr": ("SR<syn", 3),
    "gt_over_syn": ("syn<GT", 3),
    "cc": ("CC", 3),
    "auc": ("AUC", 3),
    "ap": ("AP", 3),
    "iou": ("IoU", 3),
    "iou_half": ("IoU.5", 3),
    "sim": ("SIM", 3),
    "kld": ("KLD", 2),
    "nss": ("NSS", 2),
    "auc_judd": ("Judd", 3),
    "mae": ("MAE", 3),
    "clean_mean": ("clean", 4),
}
_LEGEND = (
    "GT>SR, SR<syn, syn<GT: share of pairs in the right order, ties half. CC, SIM, KLD, NSS, Judd (AUC-Judd), MAE: "
    "map of the implanted photo against M_gt. AUC, AP, IoU (best threshold of each map), IoU.5 (threshold 0.5): "
    "against the swap mask. clean: mean map of the photos. An empty cell was not measured."
)
_WIDTH = 124  # what the widest table needs where the output is not a terminal


def run(
    data: str | Path,
    *,
    model: RewardModel | None = None,
    name: str | None = None,
    split: str = "val",
    shifts: Sequence[str] = ("none",),
    metrics: Sequence[str] | None = None,
    without: Sequence[str] = (),
    seed: int = 0,
    faults: tuple[int, int] = (1, 3),
    intervals: bool = False,
    climb: int = 0,
    json_file: str | Path | None = None,
    page: str | Path | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> list[Evaluation]:
    """Evaluate a reward model and the baselines on a folder of scenes, print the tables, and return the evaluations.

    Args:
        data: folder with `index.jsonl` (see `finpercep.data.load_scenes`).
        model: the model; None measures the baselines only.
        name: of the model, as it was loaded.
        split: split of the index.
        shifts: "none", "jpegQ", "resizeF"; "all" stands for none, jpeg75 and resize0.7.
        metrics: no-reference metrics of pyiqa, and rewards as "module:name" or "A + 0.5*B" (see `load_reward`); None
            is "piqe" where pyiqa is installed.
        without: sources that one more row leaves out of each mean.
        seed, faults: see `finpercep.evaluation.trials.iterate_trials`.
        intervals: also print, and write, 95 % intervals; see `finpercep.evaluation.intervals`.
        climb: number of results of each source that the model's climb test takes; see `finpercep.evaluation.climb`.
        json_file: also write the figures there, as a list of `Evaluation.to_dict()`, with the fingerprints of model
            and scenes.
        page: also write the model's cases, under the first shift, as an HTML file; see `write_cases_page`.
        device: of the metrics.

    Raises:
        FileNotFoundError: no such data; RuntimeError: no pyiqa though asked for, or no weights of a metric;
        ValueError: bad argument or data.
    """
    console = console or _console()
    shifts = _expand_shifts(shifts)
    scenes = load_scenes(data, split)
    _check_sources(without, scenes)
    for file in (json_file, page):
        _check_file(file)
    if json_file is not None and page is not None and Path(json_file).resolve() == Path(page).resolve():
        raise ValueError(f"page: expected another file than that of the figures, got {page} for both")
    for argument, value in (("climb", climb), ("page", page)):
        if value and model is None:
            raise ValueError(f"{argument}: expected a model, got none")
    take_full_float32(device)
    judges = _judges(model, name, metrics, device)
    by_shift: list[list[Evaluation]] = []
    for shift in shifts:
        beside = {title: make() for title, make in baselines.BASELINES.items()}  # anew: one of them draws at random
        by_shift.append(_evaluate(judges | beside, scenes, shift, seed, faults))
    evaluations = [evaluation for done in by_shift for evaluation in done]
    climbs = _climb(model, scenes, climb, device) if model is not None and climb else []
    try:
        if json_file is not None:
            figures = {
                "data": str(data),
                "data_fingerprint": scenes_fingerprint(scenes),
                "split": split,
                "model": name,
                "fingerprint": None if model is None else model.fingerprint,
                "evaluations": [
                    evaluation.to_dict() | ({"intervals": interval_figures(evaluation)} if intervals else {})
                    for evaluation in evaluations
                ],
                **({"climb": climb_figures(climbs)} if climbs else {}),
            }
            write_json(Path(json_file), figures)
        if page is not None:
            write_cases_page(Path(page), next(iter(judges.values())), evaluations[0], scenes)
    finally:  # behind the files, as whoever reads the output may stop; but whether they can be written or not
        for done in by_shift:
            _print(console, done, without)
            if intervals:
                console.print(interval_table(done))
        if metrics is None and not baselines.pyiqa_available():
            hint = "PIQE's score beside it: pip install 'finpercep[eval]'"
            console.print(hint, style="dim", highlight=False, markup=False)
        console.print(_LEGEND, style="dim", highlight=False)
        if climbs:
            console.print(climb_table(climbs))
            console.print(CLIMB_LEGEND, style="dim", highlight=False)
    return evaluations


def overall_table(evaluations: Sequence[Evaluation], without: Sequence[str] = ()) -> Table:
    """One row per judge, all sources together; with `without`, one more row each that leaves those out."""
    counts = evaluations[0].overall
    table = _table(
        f"shift {evaluations[0].shift}: {_counted(counts['scenes'], 'scene')}, {_counted(counts['pairs'], 'pair')}",
        "all sources",
    )
    for evaluation in evaluations:
        table.add_row(Text(evaluation.name), *_cells(evaluation.overall))
    if without:
        table.add_section()
        for evaluation in evaluations:
            name = f"{evaluation.name}, no {', '.join(without)}"
            table.add_row(Text(name), *_cells(evaluation.summary(without=without)))
    return table


def source_table(evaluation: Evaluation) -> Table:
    """One row per SR source of one judge."""
    table = _table(f"{evaluation.name}, shift {evaluation.shift}: each source alone", "source")
    for source, summary in evaluation.per_source.items():
        table.add_row(Text(f"{source} ({summary['pairs']:.0f})"), *_cells(summary))
    return table


def _counted(count: Any, what: str) -> str:
    return f"{count:.0f} {what}" + ("" if count == 1 else "s")


def _short(name: str) -> str:
    """An embedded model's name as it is, and a folder's last part."""
    return name if name in available_models() else os.path.basename(os.path.abspath(name))  # "." has a name, too


def _judges(
    model: RewardModel | None, name: str | None, metrics: Sequence[str] | None, device: str
) -> dict[str, Judge]:
    judges: dict[str, Judge] = {}
    if model is not None:
        judges[_short(name or "model")] = baselines.reward_judge(model)
    if metrics is None:
        metrics = ["piqe"] if baselines.pyiqa_available() else []
    for metric in metrics:
        if ":" in metric or PLUS in metric:
            judges[metric] = baselines.reward_judge(load_reward(metric, device=device), device=device)
        else:
            judges[metric.upper()] = baselines.pyiqa_metric(metric, device)
    return judges


def _evaluate(
    judges: dict[str, Judge], scenes: list[Scene], shift: str, seed: int, faults: tuple[int, int]
) -> list[Evaluation]:
    with progress_bar(Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"shift {shift}", total=len(scenes))
        return evaluate_all(judges, scenes, seed=seed, faults=faults, shift=shift, progress=lambda: bar.advance(task))


def _climb(model: RewardModel, scenes: list[Scene], per_source: int, device: str) -> list[Climb]:
    with progress_bar(Console(stderr=True), transient=True) as bar:
        task = bar.add_task("climb test", total=len(picks(scenes, per_source)))
        return climb_all(model, scenes, per_source, device=device, progress=lambda: bar.advance(task))


def _print(console: Console, done: list[Evaluation], without: Sequence[str]) -> None:
    """The table of all judges, then one of each that scores."""
    console.print(overall_table(done, without))
    for evaluation in done:
        if evaluation.overall["gt_over_sr"] is not None:
            console.print(source_table(evaluation))


def _table(title: str, first: str) -> Table:
    shown = Text(title, "table.title")  # in a plain string, brackets of a name would be markup
    table = Table(title=shown, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading, _ in _COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(summary: dict[str, Any]) -> list[str]:
    return ["" if summary[key] is None else f"{summary[key]:.{decimals}f}" for key, (_, decimals) in _COLUMNS.items()]


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=max(_WIDTH, console.width))


def _expand_shifts(shifts: Sequence[str]) -> list[str]:
    names = [name for shift in shifts for name in (SHIFTS if shift == "all" else (shift,))]
    if not names:
        raise ValueError("shift: expected at least one, got none")
    for name in names:
        parse_shift(name)
    return list(dict.fromkeys(names))


def _check_sources(without: Sequence[str], scenes: list[Scene]) -> None:
    known = {source for scene in scenes for source in scene.sources}
    unknown = sorted(set(without) - known)
    if unknown:
        raise ValueError(f"without: expected some of {sorted(known)}, got {unknown}")
    if known and not known - set(without):
        raise ValueError("without: expected to leave at least one source, got all of them")


def _check_file(file: str | Path | None) -> None:
    """Before the work rather than after it."""
    if file is None:
        return
    folder = Path(file).resolve().parent
    if not folder.is_dir():
        raise ValueError(f"{file}: expected a file in an existing folder, got no folder there")
    if Path(file).is_dir():
        raise ValueError(f"{file}: expected a file, got a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{file}: expected a file in a folder that can be written to, got {folder}")
