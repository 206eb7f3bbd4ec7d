"""``finpercep bench``: the benchmarks of a checkout, in one report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from finpercep.cli.common import one_line_errors
from finpercep.io.files import atomic_write, write_json

SUITES = {
    "operators": "benchmarks",  # pytest-benchmark's suite
    "engine": "benchmarks.engine",
    "latency": "benchmarks.latency",
    "peers": "benchmarks.peers",
    "serving": "benchmarks.serving",
}
"""Name -> what `python -m` runs in the root of the checkout."""
DEFAULT = ("operators", "latency")


def bench(
    out: Annotated[Path, typer.Argument(help="Folder for bench.md and bench.json.")],
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help=f"{', '.join(SUITES)}; repeats. Default: {' and '.join(DEFAULT)}."),
    ] = None,
) -> None:
    """Run the benchmarks of this checkout of the repository, one after the other, and write one report.

    Figures mean something where nothing else runs. Each suite also writes its own files to benchmarks/results/. Needs
    a checkout, installed by pip install -e '.[bench]': a wheel has no benchmarks.
    """
    chosen = suite or list(DEFAULT)
    unknown = [name for name in chosen if name not in SUITES]
    if unknown:
        print(f"--suite: expected {', '.join(SUITES)}, got {unknown[0]}", file=sys.stderr)
        raise typer.Exit(2)
    root = checkout()
    if root is None:
        print(
            "bench: expected a checkout of the repository, got an installed package without its benchmarks/",
            file=sys.stderr,
        )
        raise typer.Exit(2)
    with one_line_errors(1, OSError):
        out.mkdir(parents=True, exist_ok=True)  # before the work that is written there
    pages, figures, failed = ["# Benchmarks\n"], dict[str, Any](), False
    for name in chosen:
        written = run(root, SUITES[name])
        failed |= not written
        pages.append(f"## {name}\n\n" + (written[0] if written else "Failed; what it printed says why.\n"))
        figures |= {name: written[1]} if written else {}
    with one_line_errors(1, OSError):
        write_json(out / "bench.json", figures)
        with atomic_write(out / "bench.md") as file:
            file.write("\n".join(pages).encode())
    print(f"report: {out / 'bench.md'}")
    raise typer.Exit(int(failed))


def checkout() -> Path | None:
    """The root of the repository that this package is run from, if it is."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "benchmarks" / "__main__.py").is_file() else None


def run(root: Path, module: str) -> tuple[str, Any] | None:
    """The page and the figures that a suite wrote to the results, or None if it failed."""
    results = root / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.glob("*.json")}
    print(f"== python -m {module}", flush=True)
    if subprocess.run([sys.executable, "-m", module], cwd=root).returncode:
        return None
    new = [path for path in results.glob("*.json") if path.stat().st_mtime_ns != before.get(path)]
    if len(new) != 1:
        return None
    return new[0].with_suffix(".md").read_text(), json.loads(new[0].read_text())
