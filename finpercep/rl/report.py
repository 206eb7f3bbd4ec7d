"""`report.html`: curves of the reward and of what is held out, stages, alarms, and pictures at every measurement."""

from __future__ import annotations

import html
import io
import json
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from finpercep.evaluation.climb import RATE, STEPS
from finpercep.io.files import atomic_write
from finpercep.io.html_page import html_page, inline_jpeg
from finpercep.rl.pair_sets import PICTURES

PANELS = {
    "reward_avg": "reward, climbed",
    "reward_avg_std": "its standard deviation over photos",
    "judge": "reward, judging",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "severity": "severity of M_gt (less is better)",
    "jpeg_share": "share of the reward that JPEG 75 removes",
    "score_map_gap": "gap between score and map",
    "edges": "share of edges",
    "high_frequencies": "share of high frequencies",
    "color_entropy": "entropy of colors, bits",
    "velocity_distance": "velocity: distance to the reference",
    "velocity_norm": "velocity: length over the reference's",
}
CLIMB = "climb.json"
CLIMBED = {
    "photo": ("score of the photo", "{:.4f}"),
    "start": ("score of the result", "{:.4f}"),
    "end": ("score of the climbed result", "{:.4f}"),
    "stored": ("as a file of 8 bits", "{:.4f}"),
    "jpeg75": ("as JPEG 75", "{:.4f}"),
    "resized": ("at 0.7 of the size", "{:.4f}"),
    "passed": ("share that passes its photo, of those that begin below", "{:.2f}"),
    "median_step": ("median of the steps at which they do", "{:.0f}"),
    "psnr": ("PSNR against the result, dB", "{:.2f}"),
    "severity_start": ("severity of M_gt before", "{:.4f}"),
    "severity_end": ("severity of M_gt behind", "{:.4f}"),
}
"""Means of `climb_summary`: name -> title and form."""
_STYLE = """main { max-width: 1100px; margin: 2rem auto; padding: 0 1rem; } img { max-width: 100%; }
figure { margin: 1rem 0; } .alarm { background: #fbe3df; padding: .4rem .8rem; border-left: 4px solid #b3261e; }
summary { cursor: pointer; margin: .8rem 0; }
td, th { padding: .15rem .8rem; text-align: right; } th:first-child, td:first-child { text-align: left; }"""
_PLAIN = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
SHOWN = 5
"""Measurements whose pictures are open on the page, evenly chosen, the first and the last among them."""


def write_report(out: Path) -> Path | None:
    """Write `<out>/report.html` from metrics.jsonl, rl.json and pictures/; where matplotlib is missing, without curves.

    Returns:
        The page; None, and nothing is written, where metrics.jsonl has no measurement.
    """
    lines = _log(out)
    if not _measured(lines):
        return None
    settings = json.loads((out / "rl.json").read_text())
    title = f"{settings['kind'].removesuffix('Config')} of {settings['generator']}, {lines[-1]['step']} steps"
    parts = [f"<h1>{html.escape(title)}</h1>", *report_parts(out)]
    path = out / "report.html"
    with atomic_write(path) as file:
        file.write(html_page(title, f"<main>{''.join(parts)}</main>", style=_STYLE).encode())
    return path


def report_parts(out: Path) -> list[str]:
    """HTML of a run: alarms, what was measured at first and at last, curves, and pictures at every measurement."""
    lines = _log(out)
    measured = _measured(lines)
    settings = json.loads((out / "rl.json").read_text())
    alarms = [(line["step"], text) for line in lines for text in line.get("alarms", ())]
    comparable = max(len(list(lines)) for _, lines in groupby(measured, lambda line: (line["stage"], line["version"])))
    parts = [_alarms(alarms, settings, comparable), _stages(lines, settings), _table(measured)]
    return [*parts, _curves(lines, measured, alarms), _climb(out / CLIMB), _pictures(out, measured)]


def _log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def _measured(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of steps at which held-out photos were measured."""
    return [line for line in lines if "eval/reward_avg" in line]


def _alarms(alarms: list[tuple[int, str]], settings: dict[str, Any], measurements: int) -> str:
    if alarms:
        return "".join(f'<p class="alarm">step {step}: {html.escape(text)}</p>' for step, text in alarms)
    if settings["monitors"]["alarm"] == "off":
        return "<p>The alarm was off.</p>"
    held = settings.get("held_out", settings["eval_photos"])
    if held == 1:
        return "<p>One held-out photo is too few for the alarm.</p>"
    if measurements <= settings["monitors"]["patience"]:
        return f"<p>{measurements} measurements by one reward are too few for the alarm.</p>"
    return (
        "<p>No alarm: between no two measurements that it compares did the reward rise and a held-out measure get "
        f"worse, both by more than two standard errors over the {held} held-out photos.</p>"
    )


def _stages(lines: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Which reward was climbed when, and what ended it; nothing of a run of one stage."""
    if len(settings.get("stages", ())) < 2:
        return ""
    rows = []
    for number, found in groupby(lines[1:], lambda line: line["stage"]):
        steps = [line["step"] for line in found]
        stage, ends = settings["stages"][number], f"stage {number} ends: "
        reason = next((text for line in lines if (text := line.get("switch", "")).startswith(ends)), "")
        done = f"its {stage['steps']} steps" if len(steps) == stage["steps"] else "the run's"
        why = html.escape(reason.removeprefix(ends)) or done
        name = html.escape(stage["reward"])
        rows.append(f"<tr><td>stage {number}: {name}</td><td>{steps[0]} to {steps[-1]}</td><td>{why}</td></tr>")
    return f"<table><tr><th>climbed</th><th>steps</th><th>its end</th></tr>{''.join(rows)}</table>"


def _table(measured: list[dict[str, Any]]) -> str:
    first, last = measured[0], measured[-1]
    titles = _titles(last)
    rows = "".join(
        f"<tr><td>{html.escape(title)}</td><td>{_figure(first, name)}</td><td>{_figure(last, name)}</td></tr>"
        for name, title in titles.items()
    )
    note = ""
    if first["reward"] != last["reward"]:
        note = f"<p>The climbed reward is not the same at both: {first['reward']} and {last['reward']}.</p>"
    head = f"<tr><th>held-out photos</th><th>step {first['step']}</th><th>step {last['step']}</th></tr>"
    return f"<table>{head}{rows}</table>{note}"


def _figure(measured: dict[str, Any], name: str) -> str:
    """Of a table's cell; a stage whose reward has no map has no gap to it."""
    value = measured.get(f"eval/{name}")
    return "" if value is None else f"{value:.4f}"


def _titles(measured: dict[str, Any]) -> dict[str, str]:
    """Name -> title of what was measured; measures that the run names beside the usual ones are their own titles."""
    found = [name.removeprefix("eval/") for name in measured if name.startswith("eval/")]
    known = {name: title for name, title in PANELS.items() if name in found}
    return known | {name: name for name in found if name not in PANELS and name != "alarms"}


def _curves(lines: list[dict[str, Any]], measured: list[dict[str, Any]], alarms: list[tuple[int, str]]) -> str:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "<p>Curves need matplotlib: pip install 'finpercep[train]'</p>"
    from PIL import Image

    titles = _titles(measured[-1])
    figure = Figure(figsize=(11, 2.3 * -(-len(titles) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(titles) // 3), 3, squeeze=False).flatten()
    changes = [
        (after["step"] - 0.5, f"stage {after['stage']}" if after["stage"] != before["stage"] else "")
        for before, after in pairwise(lines[1:])
        if (after["stage"], after["version"]) != (before["stage"], before["version"])
    ]
    first, last = measured[0]["step"], measured[-1]["step"]
    margin = 0.03 * max(1, last - first)
    for axis, name in zip(axes, titles, strict=False):
        having = [m for m in measured if f"eval/{name}" in m]
        axis.plot([m["step"] for m in having], [m[f"eval/{name}"] for m in having], marker=".", color="#2a5db0")
        axis.set_title(titles[name], fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlim(first - margin, last + margin)
        axis.xaxis.get_major_locator().set_params(integer=True)
        for step, stage in changes:
            axis.axvline(step, color="#555" if stage else "#bbb", linewidth=1, linestyle="-" if stage else ":")
            place = {"xy": (step, 0.97), "xycoords": ("data", "axes fraction"), "xytext": (2, 0)}
            text = {"rotation": 90, "va": "top", "fontsize": 6.5, "color": "#555", "bbox": _PLAIN}
            axis.annotate(stage, **place, textcoords="offset points", **text)
        for step, _ in alarms:
            axis.axvline(step, color="#b3261e", linewidth=1)
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    source = inline_jpeg(Image.open(buffer).convert("RGB"))
    legend = "Held-out photos over steps. Gray: a new stage, named; dotted: the reward was refreshed; red: an alarm."
    return f'<figure><img src="{source}" alt="curves"><figcaption>{legend}</figcaption></figure>'


def _climb(path: Path) -> str:
    """The climb test's means, where there was one."""
    if not path.is_file():
        return ""
    summary = json.loads(path.read_text())["summary"]
    rows = "".join(
        f"<tr><td>{html.escape(title)}</td><td>{'' if summary[key] is None else form.format(summary[key])}</td></tr>"
        for key, (title, form) in CLIMBED.items()
    )
    text = (
        f"{summary['climbs']} of these results were moved up the last reward, pixel by pixel, by {STEPS} steps of Adam "
        f"at {RATE}. A reward that is hard to climb rises little, or brings the result nearer to its photo; what JPEG "
        "or a resize undoes was no gain."
    )
    return f"<h2>How far the reward is climbed by pixels alone</h2><p>{text}</p><table>{rows}</table>"


def _pictures(out: Path, measured: list[dict[str, Any]]) -> str:
    """Of every measurement; between those that are shown the others are folded."""
    steps = [line["step"] for line in measured]
    shown = {steps[round(i * (len(steps) - 1) / (SHOWN - 1))] for i in range(SHOWN)}
    parts = ["<h2>The same photos</h2><p>Bicubic; before, with its map; now, with its map; the photo.</p>"]
    for is_open, found in groupby(steps, shown.__contains__):
        group = list(found)
        pictures = "".join(_picture(out, step, fine=is_open) for step in group)
        first, last = group[0], group[-1]
        title = f"steps {first} to {last}" if last > first else f"step {first}"
        parts.append(pictures if is_open else f"<details><summary>{title}</summary>{pictures}</details>")
    return "".join(parts)


def _picture(out: Path, step: int, *, fine: bool) -> str:
    """Folded ones, of which there may be hundreds, are coded to a fraction of the size."""
    from PIL import Image

    path = out / PICTURES / f"step-{step:06d}.png"
    if not path.is_file():
        return ""
    with Image.open(path) as picture:
        options = {} if fine else {"quality": 75, "subsampling": 2}
        source = inline_jpeg(picture.convert("RGB"), **options)
    return f'<h3>step {step}</h3><img src="{source}" alt="step {step}">'
