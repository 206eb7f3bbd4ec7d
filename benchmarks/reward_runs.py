"""What `reward_families`, `reward_ablations`, `rl_ablations` share: short trainings, figures, a file that resumes."""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finpercep.data import Scene, TripletConfig, load_scenes
from finpercep.data.identity import scenes_fingerprint
from finpercep.evaluation.baselines import reward_judge
from finpercep.evaluation.climb import climb_all, climb_summary
from finpercep.evaluation.evaluate import evaluate
from finpercep.evaluation.intervals import bootstrap_intervals
from finpercep.io.files import write_json
from finpercep.models import RewardModel
from finpercep.runs.progress import Screen
from finpercep.training import RewardTrainConfig, train

RESULTS = Path(__file__).parent / "results"
ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {"type": "conv", "norm": True},
    "small": {"type": "efficientnet-lite0+energy"},
}
FIGURES = {
    "gt_over_sr": "GT>SR",
    "syn_over_sr": "SR<syn",
    "gt_over_syn": "syn<GT",
    "cc": "CC",
    "auc": "AUC",
    "clean_mean": "clean",
}
Run = dict[str, Any]


def parser(text: str | None, runs: str) -> argparse.ArgumentParser:
    """The arguments of both."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", nargs="+", help="folders with index.jsonl, or made by make-dataset")
    made.add_argument("--runs", type=Path, default=Path(runs), help="folder for the runs")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder for the figures and the table")
    made.add_argument("--model", choices=list(ENCODERS), default="tiny", help="whose encoder is trained, from nothing")
    made.add_argument("--init", help="RM_0 to begin from in place of nothing; it must have seen none of the data")
    made.add_argument("--base-steps", type=int, default=120, help="updates of RM_0")
    made.add_argument("--steps", type=int, default=500, help="updates of the full model")
    made.add_argument("--batch", type=int, default=8, help="triplets in an update")
    made.add_argument("--crop", type=int, default=160, help="side of a triplet's crops")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return made


def settings_of(args: argparse.Namespace, seed: int) -> Run:
    """What decides a run's figures, beside its name; runs of other settings are made anew."""
    names = ("model", "init", "base_steps", "steps", "batch", "crop")
    data = [scenes_fingerprint(load_scenes(folder, "train")) for folder in args.data]
    return {**{name: getattr(args, name) for name in names}, "data": data, "seed": seed}


def tag_of(args: argparse.Namespace, seed: int) -> str:
    """Six digits of the settings, which folders of runs end with."""
    return hashlib.sha256(json.dumps(settings_of(args, seed)).encode()).hexdigest()[:6]


def trained(
    args: argparse.Namespace, name: str, seed: int, *, base: str | None = None, data: Sequence[str] = (), **changes: Any
) -> RewardModel:
    """RM_0 and then the full model of one run, resumed where they were.

    Args:
        name, seed: of the run, whose folder is `<runs>/<name>-<seed>-<six digits of the settings>`.
        base: name of the run whose RM_0 it shares; None is its own.
        data: folders, by default all.
        changes: settings of the full model, of `triplets` those that differ; `data`, `leave_out` and `dev_every` are
            RM_0's, too.
    """
    common: dict[str, Any] = {
        "data": tuple(data or args.data),
        "seed": seed,
        "batch": args.batch,
        "warmup": 40,
        "lr_encoder": 2e-3,
        "lr_new": 2e-3,
        "triplets": TripletConfig(crop=args.crop),
        **{key: changes.pop(key) for key in ("leave_out", "dev_every") if key in changes},
    }
    tag = tag_of(args, seed)
    name, base = (f"{one.replace(' ', '-')}-{seed}-{tag}" for one in (name, base or name))
    folder = args.runs / f"{base}-rm0"
    encoder = ENCODERS[args.model]
    train(
        RewardTrainConfig(out=str(folder), init=args.init, steps=args.base_steps, encoder=encoder, **common), [Screen()]
    )
    out = str(args.runs / name)
    changes = {**changes, "triplets": replace(common["triplets"], **changes.get("triplets", {}))}
    config = RewardTrainConfig(out=out, anchor=str(folder), steps=args.steps, **{**common, **changes})
    return train(config, [Screen()])


def measured(model: RewardModel, scenes: Sequence[Scene], *, climb: int = 0) -> Run:
    """Figures of a model on scenes, with 95 % intervals of resampled scenes, and a climb test of some results."""
    found = evaluate(reward_judge(model), scenes)
    figures: Run = {name: found.overall[name] for name in ("pairs", "scenes", *FIGURES)}
    figures["intervals"] = bootstrap_intervals(found.results)
    if climb:
        figures["climb"] = climb_summary(climb_all(model, scenes, climb))
    return figures


def collect(
    path: Path,
    names: Sequence[str],
    args: argparse.Namespace,
    run: Callable[[str, int], Run],
    table: Callable[[dict[str, list[Run]]], str],
    *,
    same: Callable[[Run], bool] = lambda run: True,
) -> dict[str, list[Run]]:
    """Make every run that the file `path` does not have with these settings; file and table are written after each.

    Args:
        same: whether a run that the file has is one of today's, settings aside.
    """
    torch.set_num_threads(1)
    found: dict[str, list[Run]] = json.loads(path.read_text()) if path.is_file() else {}
    wanted = {seed: settings_of(args, seed) for seed in args.seeds}
    for name, runs in list(found.items()):
        found[name] = [
            one for one in runs if one["settings"] == settings_of(args, one["settings"]["seed"]) and same(one)
        ]
        if not found[name]:
            del found[name]
    for seed in args.seeds:  # one of each first: there is something to look at early
        for name in names:
            if any(one["settings"] == wanted[seed] for one in found.get(name, [])):
                continue
            started = time.process_time()
            figures = run(name, seed)
            seconds = time.process_time() - started
            found.setdefault(name, []).append({"settings": wanted[seed], "cpu_seconds": seconds, **figures})
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
            path.with_suffix(".md").write_text(table(_in_order(found, names)))
    return _in_order(found, names)


def _in_order(found: dict[str, list[Run]], names: Sequence[str]) -> dict[str, list[Run]]:
    """The runs by name, as asked for; what was made before comes last."""
    return {name: found[name] for name in dict.fromkeys([*names, *found]) if name in found}


def cell(values: Sequence[float | None], form: str = ".3f") -> str:
    """Mean and standard deviation over seeds, the mean in this form; empty where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    if len(known) == 1:
        return format(known[0], form)
    return f"{statistics.mean(known):{form}} ± {statistics.stdev(known):{form.lstrip('+')}}"
