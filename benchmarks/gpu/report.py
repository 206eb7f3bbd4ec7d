"""The table of a GPU run: `results/<device>.json` and `results/<device>.md`. What was not measured stays empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.measure import EXECUTORS, best

RESULTS = Path(__file__).parent.parent / "results"
BAR_BYTES, BAR_SHARE, BAR_LAUNCH = 256e6, 0.85, 1.3
COLUMNS = ("operator", "direction", "dtype", "size", "MB", *EXECUTORS, "GB/s", "% copy", "× compile", "memory ÷ eager",
           "bar")  # fmt: skip

Row = dict[str, Any]


def write(result: Row, name: str, folder: Path = RESULTS) -> Path:
    """Write both files, return the Markdown's path."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    path = folder / f"{name}.md"
    path.write_text(markdown(result))
    return path


def markdown(result: Row) -> str:
    """Machine, checks and measurements as one page."""
    lines = [f"# {result['machine']['gpu']}", ""]
    lines += [", ".join(f"{key} {value}" for key, value in result["machine"].items()), ""]
    lines += ["| check | result |", "|---|---|"]
    lines += [f"| {check['name']} | {check['result']} |" for check in result["checks"]]
    if ceiling := result.get("ceilings"):
        lines += ["", f"Ceilings: copy {ceiling['copy_gbps']:.0f} GB/s, bf16 matrix product "
                  f"{ceiling['matmul_tflops']:.0f} TFLOP/s, empty launch {ceiling['launch_seconds'] * 1e6:.1f} µs. "
                  "Times in µs, medians, cold cache."]  # fmt: skip
        lines += ["", row_of(COLUMNS), "|---" * len(COLUMNS) + "|"]
        lines += [row_of(cells(row, ceiling)) for row in result["rows"]]
    if model := result.get("model"):
        times = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in model.items())
        lines += ["", f"ViT-L/14, 16 x 448², bf16, compiled: {times}."]
    return "\n".join(lines) + "\n"


def row_of(values: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(values) + " |"


def cells(row: Row, ceiling: dict[str, float]) -> list[str]:
    seconds, name = row["seconds"], best(row)
    out = [row["operator"], row["direction"], row["dtype"], row["size"], f"{row['bytes'] / 1e6:.1f}"]
    out += [f"{seconds[e] * 1e6:.1f}" if e in seconds else "" for e in EXECUTORS]
    if name is None:
        return [*out, "", "", "", "", ""]
    speed = row["bytes"] / seconds[name] / 1e9
    rival = min((seconds[e] for e in ("compile", "compile-max") if e in seconds), default=None)
    memory = row["peak"][name] / row["peak"]["eager"] if row["peak"].get("eager") else None
    return [*out, f"{speed:.0f}", f"{100 * speed / ceiling['copy_gbps']:.0f}",
            "" if rival is None else f"{rival / seconds[name]:.2f}",
            "" if memory is None else f"{memory:.2f}", bar(row, ceiling)]  # fmt: skip


def bar(row: Row, ceiling: dict[str, float]) -> str:
    """'yes', or what was missed: share of a copy (large), launches (small advantages), `torch.compile` (all)."""
    name = best(row)
    assert name is not None
    ours, seconds, missed = row["seconds"][name], row["seconds"], []
    if row["bytes"] >= BAR_BYTES and row["bytes"] / ours / 1e9 < BAR_SHARE * ceiling["copy_gbps"]:
        missed.append("copy")
    if (
        row["operator"] == "group_advantage"
        and row["bytes"] < 1e5
        and ours > BAR_LAUNCH * ceiling["launch_seconds"]
    ):
        missed.append("launch")
    missed += [other for other in ("compile", "compile-max") if seconds.get(other, ours) < ours]
    return f"no: {', '.join(missed)}" if missed else "yes"
