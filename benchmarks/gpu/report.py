"""The table of a GPU run: `results/<device>.json` and `results/<device>.md`. What was not measured stays empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from finpercep.io.files import atomic_write

EXECUTORS = ("eager", "compile", "compile-max", "triton", "cuda")
RIVALS = ("compile", "compile-max")
BAR_BYTES, BAR_SHARE, BAR_LAUNCH = 256e6, 0.85, 1.3
COLUMNS = (
    "operator",
    "direction",
    "dtype",
    "size",
    "MB",
    *EXECUTORS,
    "GB/s",
    "% copy",
    "× compile",
    "memory ÷ eager",
    "bar",
)

Row = dict[str, Any]


def load(path: Path, machine: Row) -> Row:
    """What an earlier command found with the same sources on the same machine, to be added to; else a new result."""
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError):
        result = {}
    if result.get("machine") == machine:
        return result
    return {"machine": machine, "checks": [], "ceilings": {}, "rows": [], "model": {}}


def write(result: Row, path: Path) -> Path:
    """Write both files whole or not at all, however the process ends; return the Markdown's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = path.with_suffix(".md")
    for target, text in (
        (page, markdown(result)),
        (path, json.dumps(result, indent=1, ensure_ascii=False) + "\n"),
    ):
        with atomic_write(target) as file:
            file.write(text.encode())
    return page


def put_check(result: Row, check: Row) -> None:
    """Add a check, in the place of an earlier one of its name."""
    names = [other["name"] for other in result["checks"]]
    if check["name"] in names:
        result["checks"][names.index(check["name"])] = check
    else:
        result["checks"].append(check)


def row_for(result: Row, case: Case) -> Row:
    """The row of a case, made if there is none."""
    dtype = str(case.dtype).removeprefix("torch.")
    key = {"operator": case.operator, "direction": case.direction, "dtype": dtype, "size": case.size}
    for row in result["rows"]:
        if key.items() <= row.items():
            return row
    row = {**key, "seconds": {}, "peak": {}, "errors": {}}
    result["rows"].append(row)
    return row


def markdown(result: Row) -> str:
    """Machine, checks and measurements as one page."""
    lines = [f"# {result['machine']['gpu']}", ""]
    lines += [", ".join(f"{key} {value}" for key, value in result["machine"].items()), ""]
    lines += ["| check | result |", "|---|---|"]
    lines += [row_of([check["name"], check["result"]]) for check in result["checks"]]
    if ceiling := result.get("ceilings"):
        lines += [
            "",
            f"Ceilings: copy {ceiling['copy_gbps']:.0f} GB/s, bf16 matrix product "
            f"{ceiling['matmul_tflops']:.0f} TFLOP/s, empty launch {ceiling['launch_seconds'] * 1e6:.1f} µs. "
            "Times in µs, medians, cold cache.",
        ]
        lines += ["", row_of(COLUMNS), "|---" * len(COLUMNS) + "|"]
        lines += [row_of(cells(row, ceiling)) for row in result["rows"]]
    if model := result.get("model"):
        lines += ["", f"ViT-L/14, 16 x 448², bf16, compiled: {times_of_model(model['seconds'])}."]
    if notes := errors(result):
        lines += ["", "Not measured:", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def times_of_model(seconds: dict[str, float]) -> str:
    """Times, and what the head adds to the bare encoder."""
    encoder = seconds.get("encoder")

    def one(name: str) -> str:
        ratio = f" ({seconds[name] / encoder:.3f} × encoder)" if encoder and name != "encoder" else ""
        return f"{name} {seconds[name] * 1e3:.2f} ms{ratio}"

    return ", ".join(map(one, seconds)) or "not measured"


def errors(result: Row) -> list[str]:
    """Why cells are empty, one line each."""
    notes = [
        f"{row['operator']} {row['direction']} {row['dtype']} {row['size']}, {name}: {why}"
        for row in result.get("rows", [])
        for name, why in row["errors"].items()
    ]
    model = result.get("model") or {}
    return notes + [f"ViT-L/14, {name}: {why}" for name, why in model.get("errors", {}).items()]


def row_of(values: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(value.replace("|", "¦") for value in values) + " |"


def best(row: Row) -> str | None:
    """The faster of our two backends, or None where neither ran."""
    ours = {name: row["seconds"][name] for name in ("triton", "cuda") if name in row["seconds"]}
    return min(ours, key=lambda name: ours[name]) if ours else None


def cells(row: Row, ceiling: dict[str, float]) -> list[str]:
    seconds, name = row["seconds"], best(row)
    megabytes = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else ""
    out = [row["operator"], row["direction"], row["dtype"], row["size"], megabytes]
    out += [f"{seconds[e] * 1e6:.1f}" if e in seconds else "" for e in EXECUTORS]
    if name is None:
        return [*out, "", "", "", "", ""]
    speed = row["bytes"] / seconds[name] / 1e9
    rival = min((seconds[e] for e in RIVALS if e in seconds), default=None)
    memory = row["peak"][name] / row["peak"]["eager"] if row["peak"].get("eager") else None
    return [
        *out,
        f"{speed:.0f}",
        f"{100 * speed / ceiling['copy_gbps']:.0f}",
        "" if rival is None else f"{rival / seconds[name]:.2f}",
        "" if memory is None else f"{memory:.2f}",
        bar(row, ceiling),
    ]


def bar(row: Row, ceiling: dict[str, float]) -> str:
    """'yes', or what was missed: share of a copy (large), launches (small advantages), `torch.compile` (all)."""
    name = best(row)
    assert name is not None
    ours, seconds, missed = row["seconds"][name], row["seconds"], []
    if row["bytes"] >= BAR_BYTES and row["bytes"] / ours / 1e9 < BAR_SHARE * ceiling["copy_gbps"]:
        missed.append("copy")
    if (
        row["operator"].startswith("group_advantage")
        and row["bytes"] < 1e5
        and ours > BAR_LAUNCH * ceiling["launch_seconds"]
    ):
        missed.append("launch")
    missed += [other for other in RIVALS if seconds.get(other, ours) < ours]
    if missed:
        return f"no: {', '.join(missed)}"
    unknown = [other for other in RIVALS if other not in seconds]
    return f"yes, without {', '.join(unknown)}" if unknown else "yes"
