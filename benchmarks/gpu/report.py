"""The table of a GPU run: `results/<device>.json` and `results/<device>.md`. What was not measured stays empty."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from finpercep.io.files import atomic_write

EXECUTORS = ("eager", "compile", "triton", "cuda")
BAR_BYTES, BAR_SHARE, BAR_LAUNCH = 256e6, 0.85, 1.3
KEY = ("operator", "direction", "dtype", "size")
COLUMNS = (*KEY, "MB", *EXECUTORS, "GB/s", "% copy", "× compile", "memory ÷ eager", "bar")
MODEL = "ViT-L/14"

Row = dict[str, Any]


def empty(machine: Row) -> Row:
    return {"machine": machine, "checks": [], "ceilings": {}, "rows": []}


def load(path: Path) -> Row:
    result: Row = json.loads(path.read_text())
    return result


def write(result: Row, path: Path) -> None:
    """Write both files whole or not at all, however the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {path.with_suffix(".md"): markdown(result), path: json.dumps(result, indent=1, ensure_ascii=False) + "\n"}
    for target, text in texts.items():
        with atomic_write(target) as file:
            file.write(text.encode())


def row(case: Case, size: int) -> Row:
    """Of a case that must move `size` bytes, with nothing measured yet."""
    values = (case.operator, case.direction, str(case.dtype).removeprefix("torch."), case.size)
    return {**dict(zip(KEY, values, strict=True)), "bytes": size, "seconds": {}, "peak": {}, "errors": {}}


def model_row() -> Row:
    values = (MODEL, "forward", "bfloat16", "16 x 448²")
    return {**dict(zip(KEY, values, strict=True)), "bytes": 0, "seconds": {}, "peak": {}, "errors": {}}


def find(result: Row, wanted: Row) -> Row:
    """The row of this name in the results, added if there is none."""
    rows: list[Row] = result["rows"]
    found = [row for row in rows if all(row[name] == wanted[name] for name in KEY)]
    if not found:
        rows.append(wanted)
    return (found or [wanted])[0]


def markdown(result: Row) -> str:
    """Machine, checks and measurements as one page."""
    operators = [row for row in result["rows"] if row["operator"] != MODEL and row["seconds"]]
    lines = [f"# {result['machine']['gpu']}", ""]
    lines += [", ".join(f"{key} {value}" for key, value in result["machine"].items()), ""]
    lines += ["| check | result |", "|---|---|"]
    lines += [_line_of([check["name"], check["result"]]) for check in result["checks"]]
    if ceiling := result["ceilings"]:
        measured = (
            f"copy {ceiling['copy_gbps']:.0f} GB/s, bf16 matrix product {ceiling['matmul_tflops']:.0f} TFLOP/s, "
            f"empty launch {ceiling['launch_seconds'] * 1e6:.1f} µs"
        )
        lines += ["", f"Ceilings: {measured}. Times in µs, medians, cold cache.", ""]
        lines += [_line_of(COLUMNS), "|---" * len(COLUMNS) + "|"]
        lines += [_line_of(cells(row, ceiling)) for row in operators]
    lines += [_model(row["seconds"]) for row in result["rows"] if row["operator"] == MODEL and row["seconds"]]
    if engine := result.get("engine"):
        lines += ["", "| engine | | holds |", "|---|---|---|"]
        lines += [_line_of([name, figures(row), _holds(row)]) for name, row in engine.items()]
    notes = [
        f"- {' '.join(row[name] for name in KEY)}, {executor}: {why}"
        for row in result["rows"]
        for executor, why in row["errors"].items()
    ]
    return "\n".join([*lines, *(["", "Not measured:", *notes] if notes else [])]) + "\n"


def _line_of(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "¦") for value in values) + " |"


def _model(seconds: dict[str, float]) -> str:
    """Times, and what the head adds to the bare encoder."""
    encoder = seconds.get("encoder")
    times = [
        f"{name} {value * 1e3:.2f} ms"
        + (f" ({value / encoder:.3f} × encoder)" if encoder and name != "encoder" else "")
        for name, value in seconds.items()
    ]
    return f"\n{MODEL}, 16 x 448², bf16, compiled: {', '.join(times)}."


def figures(row: Row) -> str:
    """What a check of the engine found, on one line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name != "ok"
    )


def _holds(row: Row) -> str:
    return {True: "yes", False: "no", None: ""}[row.get("ok")]


def best(row: Row) -> str | None:
    """The faster of our two backends, or None where neither ran."""
    ours = {name: row["seconds"][name] for name in ("triton", "cuda") if name in row["seconds"]}
    return min(ours, key=lambda name: ours[name]) if ours else None


def cells(row: Row, ceiling: dict[str, float]) -> list[str]:
    """A row of the table, in the order of `COLUMNS`."""
    seconds, name = row["seconds"], best(row)
    out = [*(row[key] for key in KEY), f"{row['bytes'] / 1e6:.1f}"]
    out += [f"{seconds[e] * 1e6:.1f}" if e in seconds else "" for e in EXECUTORS]
    if name is None:
        return [*out, "", "", "", "", ""]
    speed, rival = row["bytes"] / seconds[name] / 1e9, seconds.get("compile")
    eager = row["peak"].get("eager")
    out += [f"{speed:.0f}", f"{100 * speed / ceiling['copy_gbps']:.0f}"]
    out += ["" if rival is None else f"{rival / seconds[name]:.2f}"]
    return [*out, f"{row['peak'][name] / eager:.2f}" if eager else "", bar(row, seconds[name], ceiling)]


def bar(row: Row, ours: float, ceiling: dict[str, float]) -> str:
    """'yes', or what was missed: share of a copy (large), launches (small advantages), `torch.compile` (all)."""
    missed = []
    if row["bytes"] >= BAR_BYTES and row["bytes"] / ours / 1e9 < BAR_SHARE * ceiling["copy_gbps"]:
        missed.append("copy")
    small = row["operator"].startswith("group_advantage") and row["bytes"] < 1e5
    if small and ours > BAR_LAUNCH * ceiling["launch_seconds"]:
        missed.append("launch")
    rival = row["seconds"].get("compile")
    if rival is not None and rival < ours:
        missed.append("compile")
    if missed:
        return f"no: {', '.join(missed)}"
    return "yes" if rival is not None else "yes, without compile"


def line(row: Row, name: str, ceiling: dict[str, float]) -> str:
    """One cell as it appears while measuring."""
    what = f"{' '.join(row[key] for key in KEY)}, {name}"
    if name not in row["seconds"]:
        return f"{what}: {row['errors'][name]}"
    share = f", {row['bytes'] / row['seconds'][name] / 1e9 / ceiling['copy_gbps']:.0%} of copy" if row["bytes"] else ""
    return f"{what}: {row['seconds'][name] * 1e6:.1f} µs{share}"
