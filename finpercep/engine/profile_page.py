"""The report of a profile: one HTML page with bars, tables and a roofline, beside its JSON and trace."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finpercep.io.files import atomic_write, write_json
from finpercep.io.html_page import html_page

__all__ = ["write_loop_report", "write_report"]

COLORS = dict(
    zip(
        ("load", "preprocess", "encoder", "decoder", "modulate", "head", "copy back"),
        ("#8d99ae", "#e9c46a", "#264653", "#2a9d8f", "#e76f51", "#7b5ea7", "#b5b5ac"),
        strict=True,
    )
)
PALETTE = tuple(COLORS.values())
STYLE = """main { max-width: 1080px; margin: 0 auto; padding: 36px 28px 60px; }
h1 { font-size: 30px; margin: 0 0 6px; letter-spacing: -0.02em; } h2 { font-size: 20px; margin: 38px 0 8px; }
p { color: #45454a; max-width: 62em; margin: 4px 0 12px; }
table { border-collapse: collapse; width: 100%; background: #fff; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 6px 12px; text-align: right; border-bottom: 1px solid #e6e6e1; }
th { color: #6a6a70; font-weight: 500; }
th:first-child, td:first-child { text-align: left; }
.bar { display: flex; height: 26px; border-radius: 5px; overflow: hidden; margin: 10px 0 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; font-size: 13px; color: #45454a; margin-bottom: 12px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
img { max-width: 100%; background: #fff; } code { font-size: 13px; }
"""


def write_report(found: Mapping[str, Any], folder: Path, *, trace: bool) -> Path:
    """Write `profile.json`, `roofline.png` and `index.html`; gives the page's path.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the folder cannot be written to.
    """
    plot = _roofline(found)
    write_json(folder / "profile.json", found)
    with atomic_write(folder / "roofline.png") as file:
        file.write(plot)
    limits = "; ".join(
        f"{name}: a copy moves {c['copy_gbps']:.1f} GB/s, a matrix product computes {c['matmul_gflops']:.0f} GFLOP/s"
        for name, c in found["ceilings"].items()
    )
    picture = base64.b64encode(plot).decode()
    sections = "".join(_stages(row) for row in found["timings"])
    body = f"""<main><h1>Profile of {html.escape(str(found["model"]))}</h1>
<p>{html.escape(found["device"])}, torch {html.escape(found["torch"])}, medians of {found["rounds"]} rounds.
{limits}.</p>
<h2>The whole: score and map of a batch on the device</h2>{_whole(found["timings"])}
<h2>Roofline</h2><p>What a stage computes per byte that it has to move, and how fast it did so. The lines are the
ceilings measured in the same run.</p><img alt="roofline" src="data:image/png;base64,{picture}">
<h2>Stages</h2><p>Each measured alone, not compiled, from what the one before it gave. Bytes are those that must move:
what goes in, what comes out, weights. The share is that of the nearer ceiling. "load" decodes a PNG.</p>{sections}
{_trace_note(" of the first of these stages") if trace else ""}</main>"""
    return _write(folder, f"Profile of {found['model']}", body)


def write_loop_report(times: Mapping[str, Any], folder: Path, title: str, *, trace: bool) -> Path:
    """Write `loop.json` and `index.html` of a loop's spans (`Profile.times`); gives the page's path."""
    write_json(folder / "loop.json", {name: t._asdict() for name, t in times.items()})
    outer = [(name, t.share) for name, t in times.items() if "/" not in name]
    colors = {name: PALETTE[i % len(PALETTE)] if name != "other" else "#d9d9d2" for i, (name, _) in enumerate(outer)}
    rows = [
        (html.escape(name), str(t.calls), f"{t.seconds:.3f}", f"{t.seconds / t.calls * 1e3:.1f}", f"{t.share:.1%}")
        for name, t in times.items()
    ]
    table = _table(("span", "calls", "seconds", "ms each", "share"), rows)
    body = f"<main><h1>{html.escape(title)}</h1>{_bar(outer, colors)}{table}{_trace_note() if trace else ''}</main>"
    return _write(folder, title, body)


def _write(folder: Path, title: str, body: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "index.html") as file:
        file.write(html_page(title, body, style=STYLE).encode())
    return folder / "index.html"


def _trace_note(of: str = "") -> str:
    return f"<h2>Trace</h2><p><code>trace.json</code> holds every operator{of}: open it in ui.perfetto.dev.</p>"


def _whole(timings: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"{t['batch']} × {t['height']} × {t['width']}, {t['dtype']}"
            + (f", {t['compile']}" if t["compile"] else ""),
            *("" if t[name] is None else f"{1e3 * t[name]:.1f}" for name in ("p50", "p95", "p99", "first_call")),
            f"{t['images_per_second']:.1f}",
            "" if t["peak_bytes"] is None else f"{t['peak_bytes'] / 1e6:.0f}",
        )
        for t in timings
    ]
    return _table(("batch", "p50 ms", "p95 ms", "p99 ms", "first call ms", "images/s", "peak MB"), rows)


def _stages(timing: Mapping[str, Any]) -> str:
    stages = timing["stages"]
    rows = [
        (
            s["name"],
            f"{1e3 * s['seconds']:.2f}",
            f"{s['part']:.1%}",
            f"{s['bytes'] / 1e6:.1f}" if s["bytes"] else "",
            f"{s['flops'] / 1e9:.2f}" if s["flops"] else "",
            "" if s["share"] is None else f"{s['share']:.0%}",
        )
        for s in stages
    ]
    title = f"<h3>{timing['batch']} × {timing['height']} × {timing['width']}, {timing['dtype']}</h3>"
    bar = _bar([(s["name"], s["part"]) for s in stages], COLORS)
    return title + bar + _table(("stage", "ms", "part", "MB", "GFLOP", "share of the ceiling"), rows)


def _bar(parts: Sequence[tuple[str, float]], colors: Mapping[str, str]) -> str:
    pieces = "".join(f'<div style="width:{100 * p:.2f}%;background:{colors[n]}"></div>' for n, p in parts)
    keys = "".join(
        f'<span><i style="background:{colors[n]}"></i>{html.escape(n)} {p:.0%}</span>' for n, p in parts if p >= 0.005
    )
    return f'<div class="bar">{pieces}</div><div class="legend">{keys}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{lines}</table>"


def _roofline(found: Mapping[str, Any]) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a profile's roofline needs matplotlib: pip install 'finpercep[demo]'") from error
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    for dtype, limit in found["ceilings"].items():
        ridge = limit["matmul_gflops"] / limit["copy_gbps"]
        xs = [0.05, ridge, max(2000.0, 4 * ridge)]
        axes.plot(xs, [0.05 * limit["copy_gbps"], *[limit["matmul_gflops"]] * 2], label=f"ceilings, {dtype}", lw=1.5)
    seen: set[str] = set()
    for number, timing in enumerate(found["timings"]):
        for stage in timing["stages"]:
            if stage["flops"] and stage["bytes"]:
                label = None if stage["name"] in seen else stage["name"]
                seen.add(stage["name"])
                place = stage["flops"] / stage["bytes"], stage["flops"] / stage["seconds"] / 1e9
                axes.plot(*place, marker="osD^vP*"[number % 7], color=COLORS[stage["name"]], ls="", ms=8, label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must move", ylabel="GFLOP/s")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, dpi=130)
    return file.getvalue()
