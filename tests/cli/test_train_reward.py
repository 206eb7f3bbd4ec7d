"""``finpercep train-reward``: options arrive, errors are one line."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.io.images import ImageError, load_image
from finpercep.runs.lock import folder_lock
from finpercep.runs.progress import Screen
from finpercep.runs.trackers import TensorBoard
from finpercep.training import trainer
from finpercep.training.config import RewardTrainConfig
from tests.data.conftest import write_scenes


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[RewardTrainConfig]:
    """The configurations that the command would train with."""
    configs: list[RewardTrainConfig] = []
    monkeypatch.setattr(trainer, "train", lambda config, monitors: configs.append(config))
    return configs


def test_defaults_are_the_configurations(seen: list[RewardTrainConfig]) -> None:
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", "o", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert seen == [RewardTrainConfig(data=("d",), out="o")]
    assert seen[0].decoder["width"] == "light"  # as the help says


def test_it_shows_and_tracks_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[type] = []
    monkeypatch.setattr(trainer, "train", lambda config, monitors: kinds.extend(map(type, monitors)))
    assert CliRunner().invoke(app, ["train-reward", "d", "--out", "o", "--device", "cpu"]).exit_code == 0
    assert kinds == [Screen, TensorBoard]


def test_train_reward_passes_every_option_on(seen: list[RewardTrainConfig]) -> None:
    options = {
        **{
            "--out": "o",
            "--anchor": "a",
            "--steps": "7",
            "--batch": "3",
            "--crop": "64",
            "--lr-encoder": "0.5",
        },
        **{"--lr-new": "0.25", "--width": "40", "--gate": "quality", "--margin": "0.2", "--dev-every": "5"},
        **{"--seed": "9", "--workers": "0", "--leave-out": "srgan", "--warmup": "30"},
    }
    words = [word for pair in options.items() for word in pair]
    result = CliRunner().invoke(app, ["train-reward", "d", *words, "--leave-out", "rlfn", "--more", "a=2"])
    assert result.exit_code == 0, result.output
    config = seen[0]
    assert (config.data, config.out, config.anchor, config.steps, config.batch) == (("d",), "o", "a", 7, 3)
    assert (config.lr_encoder, config.lr_new, config.seed, config.workers, config.dev_every) == (
        0.5,
        0.25,
        9,
        0,
        5,
    )
    assert config.warmup == 30
    assert config.decoder == {"width": 40, "norm": True}
    assert config.head == {"gate": "quality"}
    assert config.leave_out == ["srgan", "rlfn"]
    assert config.more == ["a=2"]
    assert config.triplets.crop == 64
    assert (config.loss.margin_sr, config.loss.margin_syn) == (0.2, 0.2)


def test_the_papers_model_has_the_papers_settings(seen: list[RewardTrainConfig]) -> None:
    paper = "d --out o --device cpu --anchor finpercep-vit-l-14 --init finpercep-vit-l-14"
    for more in (
        "--gate degradation --width full",
        "--batch 8 --epochs 2",
        "--steps 7",
        "--precision bf16 --checkpointing",
    ):
        result = CliRunner().invoke(app, ["train-reward", *paper.split(), *more.split()])
        assert result.exit_code == 0, result.output
    assert [(config.batch, config.epochs) for config in seen] == [(64, 50), (8, 2), (64, None), (64, 50)]
    assert (seen[0].head, seen[0].decoder["width"]) == ({"gate": "degradation"}, "full")
    assert seen[2].steps == 7
    assert (seen[3].precision, seen[3].checkpointing) == ("bf16", True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--steps 3 --epochs 2", "--epochs: expected without --steps, got both (2 and 3)"),
        ("--margin nan", "margin_sr: expected a finite number of at least 0, got nan"),
        ("--precision half", "precision: expected fp32 or bf16, got 'half'"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(words: str, message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", str(tmp_path / "o"), *words.split()])
    assert (result.exit_code, result.stderr) == (2, message + "\n")


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train-reward", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(str(tmp_path / "none" / "index.jsonl"))


def test_training_on_no_such_device_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", str(tmp_path / "o"), "--device", "gpu7"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "gpu7" in result.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--anchor a --init i --width light",
            "--width: expected without --init, whose model keeps its own, got both",
        ),
        ("--init i --gate quality", "--gate: expected without --init, whose model keeps its own, got both"),
        ("--width full", "--width: expected with --anchor: RM_0 has no decoder, got no --anchor"),
    ],
)
def test_options_that_would_be_ignored_are_refused(words: str, message: str, tmp_path: Path) -> None:
    out = tmp_path / "o"
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", str(out), *words.split()])
    assert (result.exit_code, result.stderr) == (2, message + "\n")
    assert not out.exists()


@pytest.mark.parametrize("option", ["--anchor", "--init"])
def test_a_run_does_not_overwrite_what_it_starts_from(option: str, tmp_path: Path, model_folder: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "r0")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = CliRunner().invoke(app, ["train-reward", "d", option, str(folder), "--out", f"{folder}/"])
    assert result.exit_code == 2
    expected = f"out: expected another folder than that of {option[2:]}, got {folder} for both\n"
    assert result.stderr == expected
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_error_of_a_worker_is_its_last_line(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", 1)
    photo = data / "train" / "scene0" / "gt.png"
    photo.write_bytes(photo.read_bytes()[:600])
    with pytest.raises(ImageError) as found:
        load_image(photo)
    words = [
        "train-reward",
        str(data),
        "--out",
        str(tmp_path / "r0"),
        "--crop",
        "32",
        "--steps",
        "1",
        "--batch",
        "1",
    ]
    before = multiprocessing.active_children()
    result = CliRunner().invoke(app, [*words, "--device", "cpu", "--workers", "1"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == str(found.value)
    assert multiprocessing.active_children() == before  # though the error's traceback knows them


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "CUDA out of memory. Tried"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: can't allocate memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_out_of_memory_is_one_line(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(trainer, "train", fail)
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", "somewhere", "--device", "cpu"])
    assert result.exit_code == 2
    assert result.stderr == (
        f"memory: expected room for a step, got {reason}; a smaller --batch or --crop, or fewer --workers, take less, "
        "and the same command goes on from what was last saved\n"
    )


def test_interrupted_training_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train", stop)
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", "somewhere"])
    assert result.exit_code == 130
    assert (
        result.stderr == "interrupted; run the same command again to continue from what was last saved in somewhere\n"
    )


def test_a_run_in_a_folder_that_another_one_uses_is_one_line(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", 1)
    words = f"--out {tmp_path / 'r0'} --steps 1 --batch 1 --crop 32 --workers 0 --device cpu"
    with folder_lock(tmp_path / "r0"):
        result = CliRunner().invoke(app, ["train-reward", str(data), *words.split()])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"{tmp_path / 'r0'}: expected a folder that no other run is using, got one in use")


def test_a_device_that_is_not_there_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(*_: object, **__: object) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check")

    monkeypatch.setattr(torch, "empty", no_driver)
    result = CliRunner().invoke(app, ["train-reward", "d", "--out", str(tmp_path / "o"), "--device", "cuda"])
    assert result.exit_code == 2
    expected = (
        "--device: expected a device of this machine, got cuda: Found no NVIDIA driver on your system. Please check"
    )
    assert result.stderr == expected + "\n"
