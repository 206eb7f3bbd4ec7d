"""``finpercep pack``: sizes are read, the result is one line, and so are errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import features
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.cli.pack import _bytes
from tests.data.conftest import write_scenes


def test_sizes() -> None:
    found = {text: _bytes(text) for text in ("40MB", "1.5 mb", "500kB", "2G", "77")}
    assert found == {"40MB": 40_000_000, "1.5 mb": 1_500_000, "500kB": 500_000, "2G": 2_000_000_000, "77": 77}
    with pytest.raises(ValueError, match=r"^--limit: expected a size such as 40MB or 500kB, got 'much'$"):
        _bytes("much")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_it_says_what_was_found(tmp_path: Path) -> None:
    data, out = write_scenes(tmp_path / "data", 1), tmp_path / "out"
    result = CliRunner().invoke(app, ["pack", str(data), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}: 1 scenes, 3 images, 0.0 MB, quality 95, ")
    assert (out / "train" / "data" / "scene0" / "gt.avif").is_file()
    result = CliRunner().invoke(app, ["pack", str(data), "--out", str(tmp_path / "small"), "--limit", "100"])
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert re.fullmatch(r"limit: expected at least \d{4} bytes for 3 images at quality 30, got 100 bytes", lines[0])
