"""One table of a benchmark run, and the same as `results/<device>.json` and `results/<device>.md`."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "operator",
    "direction",
    "dtype",
    "size",
    "MB",
    "eager",
    "compile",
    "ours",
    "GB/s",
    "% copy",
    "× eager",
    "× compile",
    "bar",
)
BARS = {"share_of_copy": 0.70, "x_eager": 3.0, "x_compile": 1.2}
BAR_NAMES = {"share_of_copy": "copy", "x_eager": "eager", "x_compile": "compile"}
BAR_BYTES = 64 << 20
PIQE_FACTOR = 1.25
# Rows of test_scoring.py: name -> (executor it is compared with, ours)
MODEL_ROWS = {
    "finpercep-tiny score+map / PIQE score": ("PIQE", "finpercep-tiny"),
    "finpercep-tiny compiled, operator / definition": ("definition", "operator"),
}

Row = dict[str, Any]


def device_name() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found.group(1) if found else model
    words = re.sub(r"\((R|TM)\)|@.*|CPU|Processor", " ", model, flags=re.IGNORECASE).split()
    return f"cpu-{'-'.join(words).lower()}-{torch.get_num_threads()}c"


def write_results(name: str, rows: Sequence[Row], text: str) -> None:
    """`results/<name>.json` with the rows and this device's name, and `<name>.md`."""
    (RESULTS / f"{name}.json").write_text(json.dumps({"device": device_name(), "rows": rows}, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)


def rows_of(benchmarks: list[Row]) -> list[Row]:
    """Operator rows, in the order they ran: medians of the three executors side by side, ratios, bar."""
    rows: dict[tuple[str, ...], Row] = {}
    for entry in benchmarks:
        info = entry["extra_info"]
        if "direction" not in info:
            continue
        key = tuple(info[name] for name in ("operator", "direction", "dtype", "size"))
        row = rows.setdefault(key, dict(zip(("operator", "direction", "dtype", "size"), key, strict=True)))
        row["bytes"], row["rounds"] = info["bytes"], info["rounds"]
        row[f"{info['executor']}_seconds"] = entry["stats"]["median"]
        row[f"{info['executor']}_copy_gbps"] = info["copy_gbps"]
        row[f"{info['executor']}_share_of_copy"] = info["share_of_copy"]
        if info["executor"] == "cpp":
            row["gbps"], row["share_of_copy"] = info["gbps"], info["share_of_copy"]
    for row in rows.values():
        for other in ("eager", "compile"):
            if "cpp_seconds" in row and f"{other}_seconds" in row:
                row[f"x_{other}"] = ratio(row, other)
        row["bar"] = bar(row)
    return list(rows.values())


def ratio(row: Row, other: str) -> float:
    """How many times faster than `other`: by shares of the copy where every round has its own, else by times."""
    if row["bytes"] >= BAR_BYTES:
        return row["share_of_copy"] / row[f"{other}_share_of_copy"]
    return row[f"{other}_seconds"] / row["cpp_seconds"]


def bar(row: Row) -> str:
    """'yes', 'no' with what was missed, or nothing where no bar is set."""
    if row["direction"] == "backward":
        return "in training"  # what backward costs depends on what forward stored: judged together
    if row["operator"] == "group_advantage" and row["size"] == "4096x24":
        needed = {"x_compile": 1.0}
    elif row["dtype"] == "float32" and row["bytes"] >= BAR_BYTES:
        needed = BARS
    else:
        return ""
    if any(name not in row for name in needed):
        return "not measured"
    missed = [BAR_NAMES[name] for name, least in needed.items() if row[name] < least]
    return f"no: {', '.join(missed)}" if missed else "yes"


def model_rows(benchmarks: list[Row]) -> list[Row]:
    """Rows of the whole model: score and map against PIQE's score, and Eq. 7 as operator or as definition inside a
    compiled model; what did not run is left out."""
    seconds = {
        (entry["extra_info"]["operator"], entry["extra_info"]["executor"]): entry["stats"]["median"]
        for entry in benchmarks
        if "direction" not in entry["extra_info"]
    }
    rows = []
    for operator, (rival, ours) in MODEL_ROWS.items():
        theirs, mine = seconds.get((operator, rival)), seconds.get((operator, ours))
        if theirs is None and mine is None:
            continue
        row: Row = {"operator": operator, "size": "512x512", "bar": "", "rival": rival}
        row |= {"rival_seconds": theirs, "cpp_seconds": mine}
        if theirs is not None and mine is not None:
            row["of_rival"] = mine / theirs
            if rival == "PIQE":
                row["bar"] = "yes" if row["of_rival"] <= PIQE_FACTOR else "no: 1.25 × PIQE"
        rows.append(row)
    return rows


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def cells(row: Row) -> list[str]:
    if "bytes" not in row:
        other = f"{row['rival']} {duration(row['rival_seconds'])}"
        ratio = f"{row['of_rival']:.2f} of {row['rival']}" if "of_rival" in row else ""
        return [
            row["operator"],
            "forward",
            "float32",
            row["size"],
            "",
            other,
            "",
            duration(row["cpp_seconds"]),
            "",
            "",
            ratio,
            "",
            row["bar"],
        ]

    def number(name: str, form: str, factor: float = 1) -> str:
        return form.format(row[name] * factor) if name in row else ""

    times = [duration(row.get(f"{executor}_seconds")) for executor in ("eager", "compile", "cpp")]
    return [
        row["operator"],
        row["direction"],
        row["dtype"],
        row["size"],
        f"{row['bytes'] / 1e6:.1f}",
        *times,
        number("gbps", "{:.1f}"),
        number("share_of_copy", "{:.0f}", 100),
        number("x_eager", "{:.1f}"),
        number("x_compile", "{:.2f}"),
        row["bar"],
    ]


def header(rows: list[Row]) -> str:
    copies = sorted(v for row in rows for k, v in row.items() if k.endswith("copy_gbps"))
    ceiling = (
        f"copy {copies[len(copies) // 2]:.1f} GB/s (median; {copies[0]:.1f} to {copies[-1]:.1f})" if copies else ""
    )
    return (
        f"{device_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {ceiling}. "
        "Medians; from 64 MB on, ratios are of shares of the copy before each round. "
        "Bars: 70 % of a copy, 3 × eager, 1.2 × compile, for float32 from 64 MB of traffic."
    )


def report(path: Path, write: bool = True) -> None:
    """Print the table of pytest-benchmark's JSON at `path`; `write` also stores it under `results/`."""
    benchmarks = json.loads(path.read_text())["benchmarks"]
    operators = rows_of(benchmarks)
    rows = operators + model_rows(benchmarks)
    title = header(operators)
    table = Table(title=title)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 4 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row))
    width = None if sys.stdout.isatty() else 190
    Console(width=width).print(table)

    if not write:
        return
    RESULTS.mkdir(exist_ok=True)
    device = device_name()
    machine = {
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    (RESULTS / f"{device}.json").write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=1, ensure_ascii=False) + "\n"
    )
    lines = [title, "", " | ".join(("", *COLUMNS, "")).strip(), "|---" * len(COLUMNS) + "|"]
    lines += [" | ".join(("", *cells(row), "")).strip() for row in rows]
    (RESULTS / f"{device}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    report(Path(sys.argv[1]))
