"""The README's code runs as it stands, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.io.pictures import as_picture, save_image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SCORE, LOOP = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_it_stays_short() -> None:
    assert len(README.splitlines()) <= 120


def test_four_lines_score_a_photo(
    photo: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_image(as_picture(photo), tmp_path / "photo.png")
    names: dict[str, object] = {}
    exec(SCORE, names)
    assert len([line for line in SCORE.splitlines() if line]) == 4
    score, shape = capsys.readouterr().out.split(maxsplit=1)
    assert 0 <= float(score) <= 1
    assert shape.strip() == f"torch.Size([1, {photo.shape[1]}, {photo.shape[2]}])"


def test_loop_moves_the_generator() -> None:
    torch.manual_seed(0)
    names: dict[str, torch.nn.Module] = {}
    exec(LOOP.replace("optimizer = ", "before = generator[1].weight.detach().clone()\noptimizer = "), names)
    assert not torch.equal(names["generator"][1].weight, names["before"])  # type: ignore[index, arg-type]
    assert all(p.grad is None for p in names["reward"].parameters())


def test_commands_exist() -> None:
    used = set(re.findall(r"^finpercep ([a-z-]+)", README, flags=re.M))
    assert used
    for command in used:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_linked_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("https:")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
