"""`finpercep profile`: its stages are the model's, its figures add up, and its page holds them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.cli.profile import _dtype
from finpercep.engine.profile import (
    STAGES,
    Ceilings,
    Stage,
    measure_ceilings,
    percentile,
    seconds_of,
    stages_of,
    timing,
)
from finpercep.models import RewardModel

CPU = torch.device("cpu")


def test_percentiles() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], 0.5) == 3
    assert percentile([0.0, 10.0], 0.95) == 9.5
    assert percentile([7.0], 0.99) == 7


def test_seconds_are_those_of_the_call() -> None:
    found = seconds_of(lambda: time.sleep(0.02), CPU, 3)
    assert len(found) == 3
    assert all(0.02 <= s < 0.2 for s in found)


def test_ceilings_are_positive_and_half_precision_is_not_below_single() -> None:
    single, half = (measure_ceilings(CPU, dtype, rounds=2) for dtype in (torch.float32, torch.bfloat16))
    assert single.copy_gbps > 0.1
    assert single.matmul_gflops > 1
    assert half.matmul_gflops > 0.2 * single.matmul_gflops


def test_stages_of_a_batch(small_model: RewardModel) -> None:
    images = torch.randint(0, 256, (2, 3, 30, 44), dtype=torch.uint8)
    stages = {s.name: s for s in stages_of(small_model, images, Ceilings(10.0, 20.0), 2)}
    assert tuple(stages) == STAGES
    assert sum(s.part for s in stages.values()) == pytest.approx(1)
    assert stages["load"].share is None
    assert stages["preprocess"].bytes == 2 * 3 * (30 * 44 + 4 * 32 * 48)  # uint8 in, float32 out, padded
    hidden, channels = 64, 16
    assert stages["head"].flops == 2 * 2 * (channels * hidden + hidden * hidden + hidden)
    assert stages["copy back"].bytes == 2 * 4 * 2 * (1 + 30 * 44)
    modulate = stages["modulate"]
    assert modulate.bytes == 4 * 2 * (channels * 4 * 6 + 32 * 48 + channels)
    assert modulate.share == pytest.approx(modulate.bytes / modulate.seconds / 1e9 / 10.0)
    encoder = stages["encoder"]
    assert encoder.share == pytest.approx(
        max(encoder.flops / encoder.seconds / 20e9, encoder.bytes / encoder.seconds / 10e9)
    )


def test_a_model_without_a_map_has_no_decoder() -> None:
    base = RewardModel({"type": "conv", "channels": [8, 16], "depths": [1, 1]}).eval()
    row = timing(base, 1, 32, 32, compile=None, rounds=2, ceilings=Ceilings(10.0, 20.0))
    assert [s.name for s in row.stages] == [name for name in STAGES if name != "decoder"]
    assert row.p50 <= row.p95
    assert row.p99 is None  # of two calls it would be the slower one
    many = timing(base, 1, 32, 32, compile=None, rounds=100, ceilings=Ceilings(10.0, 20.0))
    assert many.p99 is not None
    assert many.p50 <= many.p95 <= many.p99
    assert row.images_per_second == pytest.approx(1 / row.p50)
    assert row.peak_bytes is None or row.peak_bytes > 1e6


def test_page_figures_and_trace(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'finpercep[demo]'")
    arguments = ["--model", str(model_folder), "--size", "32x40", "--batch", "1", "--batch", "2", "--rounds", "2"]
    result = CliRunner().invoke(app, ["profile", str(tmp_path / "out"), *arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"page: {tmp_path / 'out' / 'index.html'}"
    found = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert [(t["batch"], t["height"], t["width"]) for t in found["timings"]] == [(1, 32, 40), (2, 32, 40)]
    page = (tmp_path / "out" / "index.html").read_text()
    for text in (*STAGES, "2 × 32 × 40", "data:image/png;base64,", f"{1e3 * found['timings'][1]['p95']:.1f}"):
        assert text in page
    assert [t["p99"] for t in found["timings"]] == [None, None]
    assert "p99" not in result.stdout
    events = json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]
    assert set(STAGES) <= {event.get("name") for event in events}


def test_the_trace_is_of_the_type_that_was_asked_for(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'finpercep[demo]'")
    seen: list[torch.dtype] = []

    def stages(model: RewardModel, *given: Any) -> list[Stage]:
        seen.append(next(model.head.parameters()).dtype)
        return stages_of(model, *given)

    monkeypatch.setattr("finpercep.engine.profile.stages_of", stages)
    arguments = ["--model", str(model_folder), "--size", "32", "--batch", "1", "--rounds", "2", "--dtype", "bf16"]
    assert CliRunner().invoke(app, ["profile", str(tmp_path), *arguments, "--device", "cpu"]).exit_code == 0
    assert seen == [torch.bfloat16] * 2  # the figures, the trace


def test_a_loop_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_loop.py").write_text(
        "import time\nfrom finpercep.engine import span\ndone = []\n"
        "def step():\n    done.append(1)\n    with span('rollout'): time.sleep(.02)\n    with span('reward'): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    result = CliRunner().invoke(app, ["profile", "out", "--loop", "own_loop:step", "--steps", "4", "--no-trace"])
    assert result.exit_code == 0, result.output
    found = json.loads(Path("out/loop.json").read_text())
    assert found["rollout"]["calls"] == 4  # the first step is not timed
    assert found["rollout"]["share"] > 0.9
    assert "4 steps of own_loop:step" in Path("out/index.html").read_text()


def test_the_arguments_of_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that parses its own finds them, also while it steps; the command's are put back."""
    (tmp_path / "parsing_loop.py").write_text(
        "import argparse, pathlib, sys\nparser = argparse.ArgumentParser()\nparser.add_argument('--rate', type=float)\n"
        "rate = parser.parse_args().rate\n"
        "def step():\n    pathlib.Path('seen').write_text(f'{rate} {parser.parse_args().rate} {sys.argv[0]}')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.argv)
    options = ["--loop", "parsing_loop:step", "--steps", "1", "--no-trace"]
    result = CliRunner().invoke(app, ["profile", "out", *options, "--", "--rate", "0.5"])
    assert result.exit_code == 0, result.output
    assert Path("seen").read_text() == "0.5 0.5 parsing_loop"
    assert sys.argv == before


def test_types_have_torchs_names_too() -> None:
    assert [_dtype(name) for name in ("bfloat16", "float16", "float32")] == [
        torch.bfloat16, torch.float16, torch.float32
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "0"], "--size: expected a side or HEIGHTxWIDTH in pixels, got 0"),
        (["--dtype", "fp8"], "--dtype: expected fp32, bf16, fp16, got fp8"),
        (["--compile", "no"], "--compile: expected default, reduce-overhead, max-autotune, got no"),
        (["--steps", "3"], "--steps: expected only with --loop"),
        (["--", "--rate", "1"], "--rate: expected arguments only with --loop"),
        (["--loop", "json:loads", "--size", "64"], "--size: expected only without --loop"),
        (["--loop", "json:loads"], "--loop: expected a function without arguments, got json:loads"),
        (["--loop", "json"], "--loop: expected MODULE:NAME, got json"),
        (["--loop", "json:nothing"], "--loop: json:nothing: the module json has no 'nothing'"),
        (
            ["--loop", "no_such_module:f"],
            "--loop: no_such_module:f: expected a module that can be imported, got: No module named",
        ),
    ],
)
def test_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["profile", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
