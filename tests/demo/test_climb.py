"""The end of the demo: a curriculum run on its photos, and what the page shows of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.demo.climb import MARK, check_folder, climb, stages
from finpercep.demo.page import write_page

pytest.importorskip("skimage", reason="the demo's photos come with scikit-image")


def test_a_run(tmp_path: Path) -> None:
    """Three updates: three stages, measured on pieces of photos that are not trained on."""
    (tmp_path / "rl" / "run").mkdir(parents=True)
    (tmp_path / "rl" / "run" / "state.pt").write_text("of another demo")
    (tmp_path / "rl" / "run" / MARK).touch()
    (tmp_path / "rl" / "checkpoint-5").mkdir()  # of somebody's own run beside it
    page = write_page([], tmp_path / "index.html", "m", "f", 1.0, climb(tmp_path / "rl", 3)).read_text()
    log = [json.loads(line) for line in (tmp_path / "rl" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == [0, 0, 1, 2]
    assert all("eval/psnr" in line for line in log)
    index = [json.loads(line) for line in (tmp_path / "rl" / "photos" / "index.jsonl").read_text().splitlines()]
    assert {line["id"].partition("-")[0] for line in index if line["split"] == "val"} == {"chelsea", "rocket"}
    assert not {line["id"] for line in index if line["split"] == "train"} & {"chelsea", "rocket"}
    section = page[page.index('<section class="climb">') :]
    assert "finpercep-tiny/0, then finpercep-tiny/1, then finpercep-tiny/2" in section
    assert section.count("<img") == 5  # curves, and four measurements
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert (tmp_path / "rl" / "run" / "generator" / "model.safetensors").is_file()
    assert (tmp_path / "rl" / "checkpoint-5").is_dir()
    check_folder(tmp_path / "rl")  # the next one may make them anew


@pytest.mark.parametrize("name", ["photos", "run"])
def test_what_no_demo_made_is_left_alone(name: str, tmp_path: Path, model_folder: Path) -> None:
    """And said before the work."""
    kept = tmp_path / "rl" / name / "mine.png"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    with pytest.raises(FileExistsError):
        climb(tmp_path / "rl", 3)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--model", str(model_folder)])
    expected = f"{kept.parent}: expected nothing, or a folder that a demo made, got another\n"
    assert (result.exit_code, result.stderr) == (2, expected)
    assert kept.read_text() == "mine"
    assert not (tmp_path / "index.html").exists()


def test_stages() -> None:
    assert [(stage.reward, stage.steps) for stage in stages(31)] == [
        ("finpercep-tiny/0", 10),
        ("finpercep-tiny/1", 10),
        ("finpercep-tiny/2", 11),
    ]
    assert [stage.reward for stage in stages(2)] == ["finpercep-tiny/2"]
