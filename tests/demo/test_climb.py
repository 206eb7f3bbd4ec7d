"""The end of the demo: a curriculum run on its photos, and what the page shows of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from finpercep.demo import climb as module
from finpercep.demo.climb import climb, stages
from finpercep.demo.page import write_page

pytest.importorskip("skimage", reason="the demo's photos come with scikit-image")


def test_a_run(tmp_path: Path) -> None:
    """Two updates: two stages, measured three times on pieces of photos that are not trained on."""
    (tmp_path / "rl" / "run").mkdir(parents=True)
    (tmp_path / "rl" / "run" / "state.pt").write_text("of another run")
    page = write_page([], tmp_path / "index.html", "m", "f", 1.0, climb(tmp_path / "rl", 2)).read_text()
    log = [json.loads(line) for line in (tmp_path / "rl" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == [0, 0, 1]
    assert all("eval/psnr" in line for line in log)
    index = [json.loads(line) for line in (tmp_path / "rl" / "photos" / "index.jsonl").read_text().splitlines()]
    assert {line["id"].partition("-")[0] for line in index if line["split"] == "val"} == {"chelsea", "rocket"}
    assert not {line["id"] for line in index if line["split"] == "train"} & {"chelsea", "rocket"}
    section = page[page.index('<section class="climb">') :]
    assert "finpercep-tiny's score, then finpercep-tiny's score and map" in section
    assert section.count("<img") == 4  # curves, and three measurements
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert (tmp_path / "rl" / "run" / "generator" / "model.safetensors").is_file()


def test_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the package has; else the score of the embedded model, then its map too."""
    first, second = stages(31)
    assert (first.steps, second.steps) == (15, 16)
    assert (first.map_weight, second.map_weight) == (0.0, 0.5)
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    for stage in range(3):
        (tmp_path / "finpercep-tiny" / str(stage)).mkdir(parents=True)
        (tmp_path / "finpercep-tiny" / str(stage) / "config.json").write_text("{}")
    found = stages(31)
    assert [stage.steps for stage in found] == [10, 10, 11]
    assert [Path(stage.reward).name for stage in found] == ["0", "1", "2"]
