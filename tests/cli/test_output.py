"""Standard output that is closed or full, and names that no terminal should see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from finpercep.io.reasons import printable

CLOSED = "standard output: expected an open one, got a closed one\n"
FULL = "standard output: expected to write to it, got No space left on device\n"


def finpercep(words: str, redirect: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m finpercep {words} {redirect}"
    return subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16), (9, 80, 90)).save(tmp_path / "a.webp")
    return tmp_path


@pytest.mark.parametrize(
    ("redirect", "message"),
    [
        (">&-", CLOSED),
        pytest.param(
            ">/dev/full", FULL, marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
        ),
    ],
)
@pytest.mark.parametrize("words", ["score a.webp", "score a.webp --json", "--help"])
def test_output_that_cannot_be_written_is_one_line_and_1(
    words: str, redirect: str, message: str, photo_folder: Path, model_folder: Path
) -> None:
    model = f" --model {model_folder}" if "score" in words else ""
    done = finpercep(words + model, redirect, photo_folder)
    assert (done.returncode, done.stderr) == (1, message)


def test_closed_stderr_is_no_reason_to_stop(photo_folder: Path, model_folder: Path) -> None:
    done = finpercep(f"score a.webp gone.png --model {model_folder}", "2>&-", photo_folder)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("a.webp")


def test_names_cannot_forge_lines_and_libraries_add_none(photo_folder: Path, model_folder: Path) -> None:
    Image.new("RGB", (16, 16)).save(photo_folder / "b\nERROR c.png")
    (photo_folder / "d\x1b[31m\nERROR e.png").write_text("no image")
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    noise.save(photo_folder / "f.tif", compression="tiff_lzw")
    data = bytearray((photo_folder / "f.tif").read_bytes())
    data[200:260] = bytes(60)  # libtiff complains about it on its own
    (photo_folder / "f.tif").write_bytes(data)
    done = finpercep(f"score . --model {model_folder}", "", photo_folder)
    assert done.returncode == 1
    assert [line.split()[-2:] for line in done.stdout.splitlines()[1:]] == [
        [done.stdout.splitlines()[1].split()[-2], "a.webp"],
        ["b\\nERROR", "c.png"],
    ]
    first, second = done.stderr.splitlines()
    assert first.startswith("d\\x1b[31m\\nERROR e.png: expected an image file, got ")
    assert second.startswith("f.tif: expected a readable image, got ")


def test_printable() -> None:
    assert printable("schön [red].png 写真") == "schön [red].png 写真"
    assert printable("a\nb\x1b[31m\t\u202e\udcff") == "a\\nb\\x1b[31m\\t\\u202e\\udcff"
