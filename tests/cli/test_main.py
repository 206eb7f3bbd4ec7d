"""The command line, from the outside: what it prints where, its exit status, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from finpercep import __version__
from finpercep.cli.main import app, main
from finpercep.engine.files import map_file_names
from finpercep.io.images import load_image
from finpercep.models import RewardModel, scoring, worst_mean
from tests.conftest import close_folders

Run = Callable[..., Result]
Write = Callable[..., torch.Tensor]


@pytest.fixture
def run(model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run ``finpercep score ... --model <small model>`` inside a fresh folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["score", "--model", str(model_folder), "--device", "cpu", *arguments])

    return call


@pytest.fixture
def write(make_photo: Callable[..., torch.Tensor]) -> Write:
    """Save a synthetic photo losslessly and return its pixels."""

    def call(path: str, seed: int = 0, size: tuple[int, int] = (24, 40)) -> torch.Tensor:
        image = (make_photo(*size, seed) * 255).round().to(torch.uint8)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, lossless=True)
        return image

    return call


def test_json_has_the_models_figures(write: Write, run: Run, small_model: RewardModel) -> None:
    images = {"b.png": write("b.png", 1), "a.webp": write("a.webp", 2, (33, 17))}
    result = run("b.png", "a.webp", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["path"] for line in lines] == ["a.webp", "b.png"]  # sorted
    for line in lines:
        assert list(line) == ["path", "score", "map_mean", "map_worst"]
        out = small_model.score([images[line["path"]]])
        pixels = out.map[0].flatten().sort(descending=True).values
        assert line["score"] == pytest.approx(out.score.item(), abs=1e-6)
        assert line["map_mean"] == pytest.approx(pixels.mean().item(), abs=2e-6)
        assert line["map_worst"] == pytest.approx(pixels[: round(len(pixels) / 100)].mean().item(), abs=2e-6)


def test_a_model_without_a_map_shows_none(write: Write, run: Run, tmp_path: Path) -> None:
    write("a.png")
    torch.manual_seed(0)
    base = RewardModel({"type": "conv", "channels": [8, 16], "depths": [1, 1]})
    base.save_pretrained("rm0")
    result = run("a.png", "--json", "--model", "rm0")
    (line,) = [json.loads(text) for text in result.stdout.splitlines()]
    assert line == {
        "path": "a.png",
        "score": pytest.approx(base.eval().score("a.png").score.item(), abs=1e-6),
        "map_mean": None,
        "map_worst": None,
    }
    row = run("a.png", "--model", "rm0").stdout.splitlines()[-1]
    assert row.split()[1:] == ["-", "-", "a.png"]
    refused = run("a.png", "--maps", "maps", "--model", "rm0")
    assert refused.exit_code == 2
    assert refused.stderr == "--maps: expected a model with a map, rm0 is RM_0 and has none\n"
    assert not Path("maps").exists()
    refused = CliRunner().invoke(app, ["demo", "--model", "rm0", "--out", "page"])
    assert refused.exit_code == 2
    assert refused.stderr == "--model: expected a model with a map, rm0 is RM_0 and has none\n"
    assert not Path("page").exists()


def test_worst_mean() -> None:
    degradation = torch.zeros(2, 1, 20, 20)
    degradation[0, 0, 3, 4] = 1
    degradation[1, 0, 0, :4] = 0.5
    assert worst_mean(degradation).tolist() == [0.25, 0.5]  # the worst four of 400
    assert worst_mean(torch.tensor([[[[0.7]]]])).item() == pytest.approx(0.7)  # at least one pixel
    degradation.requires_grad_(True)
    worst_mean(degradation).sum().backward()
    assert degradation.grad is not None
    assert degradation.grad[0, 0, 3, 4] == 0.25


def test_worst_mean_of_a_list() -> None:
    maps = [torch.rand(1, 8, 9), torch.rand(1, 30, 20)]
    expected = torch.cat([worst_mean(one[None], 0.1) for one in maps])
    assert torch.equal(worst_mean(maps, 0.1), expected)
    assert worst_mean([]).shape == (0,)
    with pytest.raises(ValueError, match=r"^degradation: expected \(B,1,H,W\) or a list of \(1,H,W\), got \(40, 40\)"):
        worst_mean(torch.rand(40, 40))


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{__version__}\n")


def test_worst_mean_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    degradation = torch.rand(2, 1, 37, 41, generator=torch.Generator().manual_seed(0)).requires_grad_()
    whole = worst_mean(degradation)
    (expected,) = torch.autograd.grad(whole.sum(), degradation)
    for size in (10, 16, 700):  # fewer than the worst 15, more, more than half
        monkeypatch.setattr(scoring, "_SELECT", size)
        torch.testing.assert_close(worst_mean(degradation), whole, rtol=1e-6, atol=0)
        (gradient,) = torch.autograd.grad(worst_mean(degradation).sum(), degradation)
        assert torch.equal(gradient, expected)


def test_table_one_row_per_file(write: Write, run: Run) -> None:
    write("photos/one.png")
    write("photos/two.png", 1)
    result = run("photos")
    assert result.exit_code == 0
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["score", "map", "mean", "map", "worst", "image"]
    assert [row.split()[3] for row in rows] == ["photos/one.png", "photos/two.png"]
    assert all(0 <= float(value) <= 1 for row in rows for value in row.split()[:3])


def test_bad_files_do_not_stop_the_others(write: Write, run: Run) -> None:
    write("ok.png")
    Path("empty.png").touch()
    Path("text.png").write_text("hello")
    whole = Path("ok.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    Path("folder").mkdir()
    Path("links").mkdir()
    Path("links", "b[1].png").symlink_to("nowhere")  # its name, once found, is no pattern
    arguments = ["text.png", "ok.png", "empty.png", "cut.png", "gone.png", "folder", "*.tiff", "links/b[1].png"]
    result = run(*arguments[:-1], "links", "--json")
    assert result.exit_code == 1
    lines = {line["path"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert sorted(lines) == sorted(arguments)
    assert [path for path, line in lines.items() if "score" in line] == ["ok.png"]
    errors = dict(line.split(": ", 1) for line in result.stderr.splitlines())
    assert sorted(errors) == sorted(set(arguments) - {"ok.png"})
    for path, reason in errors.items():
        assert reason.startswith("expected ")
        assert reason == lines[path]["error"]


def test_folders_that_cannot_be_read_are_reported(write: Write, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write("photos/a.png")
    write("photos/closed/b.png")
    close_folders(monkeypatch, "closed")
    some = run("photos", "--json")
    assert [json.loads(line)["path"] for line in some.stdout.splitlines()] == ["photos/closed", "photos/a.png"]
    none = run("photos/closed")
    for result in (some, none):
        assert result.exit_code == 1
        assert result.stderr == "photos/closed: expected a folder that can be read, got Permission denied\n"


def test_nothing_readable_does_not_need_a_model() -> None:
    result = CliRunner().invoke(app, ["score", "none/*.png", "--model", "no-such-model"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "none/*.png: expected a pattern that matches files, got no match\n"


def test_unknown_model_is_one_line_and_2(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = CliRunner().invoke(app, ["score", str(tmp_path / "a.png"), "--model", "finpercep-tinny"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("finpercep-tinny: ")


def test_broken_model_file_is_one_line_and_2(tmp_path: Path, model_folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for file in model_folder.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:100] if file.suffix == ".safetensors" else content)
    result = CliRunner().invoke(app, ["score", str(tmp_path / "a.png"), "--model", str(tmp_path)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(str(tmp_path / "model.safetensors"))


def test_bad_device_is_one_line_and_2(tmp_path: Path, model_folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = ["score", str(tmp_path / "a.png"), "--model", str(model_folder), "--device", "toaster"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_maps_of_equal_names_do_not_meet(write: Write, run: Run) -> None:
    images = {scene: write(f"val/{scene}/gt.webp", seed) for seed, scene in enumerate("abc")}
    result = run("val/*/gt.webp", "--maps", "out/maps")
    assert result.exit_code == 0
    assert sorted(p.name for p in Path("out/maps").iterdir()) == [f"{s}__gt.map.png" for s in images]
    for scene, image in images.items():
        shown = load_image(f"out/maps/{scene}__gt.map.png")
        assert shown.shape == image.shape
        assert not torch.equal(shown, image)


def test_map_file_names(tmp_path: Path) -> None:
    def names(*paths: str) -> list[str]:
        return [p.name for p in map_file_names([tmp_path / p for p in paths], tmp_path / "maps")]

    assert names("x/a.jpg") == ["a.map.png"]
    assert names("a.png", "a.jpg", "A.webp") == ["a.map.png", "a-2.map.png", "A-3.map.png"]
    assert names("a/b__c.png", "a__b/c.png", "a/b/c.png") == [
        "a__b__c.map.png",
        "a__b__c-2.map.png",
        "a__b__c-3.map.png",
    ]
    assert names("maps/a.jpg", "maps/a.map.png") == ["a-2.map.png", "a.map.map.png"]  # never an input
    long = names(*(f"{'d' * 120}/{'e' * 120}/{n}.png" for n in "ab"), "z.png")
    assert len(set(long)) == 3
    assert max(map(len, long)) < 255


def test_a_column_of_a_parquet_set_is_scored_as_the_files_are(write: Write, run: Run) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra data)")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra data)")
    paths = [f"photos/{name}.png" for name in "abcd"]
    for seed, path in enumerate(paths):
        write(path, seed)
    cells = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    Path("set/data").mkdir(parents=True)
    for part in (0, 2):
        table = pa.table({"id": paths[part : part + 2], "sr": cells[part : part + 2]})
        parquet.write_table(table, f"set/data/train-{part}.parquet")
    files = run("photos", "--json", "--deterministic", "--maps", "maps")
    rows = run("set", "--column", "sr", "--json", "--deterministic", "--maps", "row-maps")
    assert rows.exit_code == files.exit_code == 0
    assert rows.stdout_bytes == files.stdout_bytes
    assert [p.name for p in sorted(Path("row-maps").iterdir())] == [f"{name}.map.png" for name in "abcd"]
    Path("set/other.parquet").write_bytes(b"rubbish")
    some = run("set", "photos", "--column", "sr", "--json")
    assert some.exit_code == 1
    assert len(some.stdout.splitlines()) == 6
    folder, other = some.stderr.splitlines()
    assert folder == "photos: expected a folder with *.parquet files, got none"
    assert other.startswith("set/other.parquet: expected a Parquet file, got ")
    none = run("set/data/train-0.parquet", "--column", "gt")
    assert none.exit_code == 1
    assert none.stderr == "set/data/train-0.parquet: expected a column of images, got 'gt'; such columns: sr\n"
    write("set/preview.png")
    preview = run("set")
    assert preview.exit_code == 0
    assert preview.stderr == "set: its Parquet files are not scored without --column\n"


def test_maps_that_cannot_be_written_are_reported(write: Write, run: Run) -> None:
    write("a.png")
    Path("file").write_text("in the way")
    result = run("a.png", "--maps", "file/maps")
    assert result.exit_code == 1
    assert result.stderr.startswith("a.png: expected to write its map, got ")
    assert len(result.stderr.splitlines()) == 1
    refused = run("a.png", "--maps", "file")
    assert refused.exit_code == 2
    assert refused.stderr == "--maps: expected a folder, got the file file\n"
    assert Path("file").read_text() == "in the way"


def test_tiny_and_grey_images(run: Run) -> None:
    Image.new("RGB", (1, 1), (9, 9, 9)).save("one.png")
    Image.new("L", (70, 3), 99).save("flat.png")
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save("deep.png")
    result = run("one.png", "flat.png", "deep.png", "--json", "--maps", "maps")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3
    assert load_image("maps/flat.map.png").shape == (3, 3, 70)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("how", ["--json", "--threads=1"])
def test_file_names_that_are_no_text(how: str, run: Run, tmp_path: Path) -> None:
    for name in (os.fsdecode(b"bad\xff.png"), "schön [red].png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    Path(os.fsdecode(b"broken\xfe.png")).touch()
    result = run(".", how, "--maps", "maps")
    assert result.exit_code == 1
    assert "broken\\udcfe.png: expected an image file, got an empty file" in result.stderr
    assert len(list(Path("maps").iterdir())) == 2
    if how == "--json":
        paths = [json.loads(line)["path"] for line in result.stdout.splitlines()]
        assert list(map(os.fsencode, paths)) == [
            b"bad\xff.png",
            b"broken\xfe.png",
            "schön [red].png".encode(),
        ]
    else:
        assert "bad\\udcff.png" in result.stdout
        assert "schön [red].png" in result.stdout


def test_workers_are_of_ray_and_threads_of_this_process(run: Run) -> None:
    result = run("x.png", "--workers", "2")
    assert (result.exit_code, result.stderr) == (2, "--workers: expected only with --engine ray\n")
    result = run("x.png", "--engine", "ray", "--threads", "2")
    assert result.exit_code == 2
    assert result.stderr == "--threads: expected only with --engine local, as a worker has one core or GPU\n"


def finpercep(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "finpercep", *arguments]


def _heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_folder_without_images_is_named_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "an empty one").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    reason = "expected a folder with images, got none with a known suffix"
    for given, shown in (("an empty one/", "an empty one"), ("~/an empty one", "~/an empty one")):
        found = run(given, "--json")
        assert found.stderr == f"{shown}: {reason}\n"
        assert json.loads(found.stdout) == {"path": shown, "error": reason}


def test_results_stream_and_interrupt_is_130(tmp_path: Path, model_folder: Path) -> None:
    for i in range(300):
        os.makedirs(tmp_path / "in", exist_ok=True)
        Image.new("RGB", (512, 512), (i % 256, 40, 90)).save(tmp_path / "in" / f"{i:03}.png")
    command = finpercep("score", str(tmp_path / "in"), "--json", "--model", str(model_folder), "--threads", "1")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, preexec_fn=_heed_interrupts) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = json.loads(process.stdout.readline())  # arrives long before the last is made
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        errors = process.stderr.read()
    assert first["path"].endswith("000.png")
    assert process.returncode == 130
    assert len(rest.splitlines()) < 299
    assert all(json.loads(line) for line in rest.splitlines())
    assert "interrupted after" in errors
    assert "Traceback" not in errors


def read_to_the_end(terminal: int) -> str:
    """What a program writes to a pseudo-terminal, some 4 kB at a time, until it has ended."""
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            part = b""
        if not part:
            return shown.decode()
        shown += part


def test_bar_on_the_terminal_leaves_stdout_alone(tmp_path: Path, model_folder: Path) -> None:
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
    for i in range(3):
        Image.new("RGB", (32, 32), (i, 40, 90)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_text("no image")
    terminal, side = pty.openpty()
    command = finpercep("score", str(tmp_path), "--json", "--model", str(model_folder))
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=side, text=True, env=environment) as process:
        os.close(side)
        shown = read_to_the_end(terminal)  # while it runs: a full terminal would stop it
        assert process.stdout is not None
        lines = process.stdout.readlines()
    os.close(terminal)
    assert process.returncode == 1
    assert [json.loads(line)["path"][-5:] for line in lines] == ["0.png", "1.png", "2.png", "d.png"]
    assert "scoring" in shown
    assert "bad.png: expected an image file" in shown


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from finpercep.cli.main import main\n"
        "sys.argv = ['finpercep', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = [m for m in ('torch', 'transformers', 'numpy', 'PIL', 'finpercep._C') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("score", "info", "demo", "train-reward", "evaluate-reward"):
        assert command in done.stdout


def test_info_names_versions_backends_and_models() -> None:
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for part in (
        f"torch {torch.__version__.split('+')[0]}",
        "backend reference available",
        "device",
        "model",
    ):
        assert part in text


def test_the_command_keeps_the_memory_that_it_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("finpercep.cli.main.keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(sys, "argv", ["finpercep", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert calls == ["kept"]
