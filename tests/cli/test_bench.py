"""``finpercep bench``: one report of what suites wrote; suites of a checkout that a test made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finpercep.cli import bench as bench_module
from finpercep.cli.main import app

SUITE = """
import json, pathlib
results = pathlib.Path("benchmarks/results")
results.joinpath("{name}.json").write_text(json.dumps({{"figure": 7}}))
results.joinpath("{name}.md").write_text("| {name} | 7 |\\n")
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one suite that works, and one that fails behind its results."""
    folder = tmp_path / "checkout" / "benchmarks"
    (folder / "results").mkdir(parents=True)
    (folder / "__main__.py").write_text(SUITE.format(name="cpu-some-2c"))
    (folder / "latency.py").write_text(SUITE.format(name="latency") + "raise SystemExit(3)")
    (folder / "results" / "older.json").write_text("{}")
    monkeypatch.setattr(bench_module, "checkout", lambda: folder.parent)
    return folder.parent


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_one_report(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = run(str(out), "--suite", "operators")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(f"report: {out / 'bench.md'}\n")
    assert json.loads((out / "bench.json").read_text()) == {"operators": {"figure": 7}}
    assert (out / "bench.md").read_text() == "# Benchmarks\n\n## operators\n\n| cpu-some-2c | 7 |\n"


def test_a_suite_that_fails_is_named_and_the_others_are_there(root: Path, tmp_path: Path) -> None:
    assert run(str(tmp_path)).exit_code == 1
    assert json.loads((tmp_path / "bench.json").read_text()) == {"operators": {"figure": 7}}
    assert (tmp_path / "bench.md").read_text().endswith("## latency\n\nFailed; what it printed says why.\n")


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(str(tmp_path), "--suite", "all")
    assert (result.exit_code, result.stderr) == (
        2,
        "--suite: expected operators, engine, latency, peers, serving, got all\n",
    )
    monkeypatch.setattr(bench_module, "checkout", lambda: None)
    result = run(str(tmp_path))
    assert (result.exit_code, result.stderr) == (
        2,
        "bench: expected a checkout of the repository, got an installed package without its benchmarks/\n",
    )


def test_this_is_a_checkout() -> None:
    root = bench_module.checkout()
    assert root is not None
    assert all(
        (root / f"{module.replace('.', '/')}.py").is_file() or module == "benchmarks"
        for module in bench_module.SUITES.values()
    )


def test_a_folder_that_cannot_be_is_said_before_the_suites_run(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(str(tmp_path / "file"), "--suite", "operators")
    assert result.exit_code == 1
    assert result.stderr == f"{tmp_path / 'file'}: File exists\n"
    assert not (root / "benchmarks" / "results" / "cpu-some-2c.json").exists()
