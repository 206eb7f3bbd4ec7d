"""A disk that is full: one line with the path and what is needed, and what was saved before stays."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.data.triplets import TripletConfig
from finpercep.runs.state import write_state
from finpercep.runs.trackers import TensorBoard
from finpercep.training.config import RewardTrainConfig
from finpercep.training.trainer import RewardTrainer, train
from tests.data.conftest import write_scenes
from tests.disk import fill, small_disk  # noqa: F401

ENCODER = {"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True}


def config(data: Path, out: Path) -> RewardTrainConfig:
    write_scenes(data, 1)
    triplets = TripletConfig(crop=32)
    options = {"encoder": ENCODER, "triplets": triplets, "workers": 0, "steps": 4, "save_every": 2, "batch": 1}
    return RewardTrainConfig(data=str(data), out=str(out), **options)


def test_training_keeps_what_it_saved(tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    settings = config(tmp_path / "data", small_disk / "run")
    files: dict[str, bytes] = {}
    step = RewardTrainer.step

    def filling(trainer: RewardTrainer, batch: object) -> object:
        if trainer.done == 2:
            files.update({path.name: path.read_bytes() for path in (small_disk / "run").iterdir()})
            fill(small_disk / "full")
        return step(trainer, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(RewardTrainer, "step", filling)
    with pytest.raises(OSError, match=r"^\S*/run/model\.safetensors: expected to write 0\.1 MB, got No space left"):
        train(settings)
    kept = {path.name: path.read_bytes() for path in (small_disk / "run").iterdir()}
    files.pop(".lock")
    assert kept == files
    assert torch.load(small_disk / "run" / "state.pt", weights_only=True)["step"] == 2


def test_the_command_ends_with_one_line(tmp_path: Path, small_disk: Path) -> None:  # noqa: F811
    write_scenes(tmp_path / "data", 1)
    words = f"--out {small_disk / 'run'} --steps 1 --batch 1 --crop 32 --workers 0 --device cpu"
    result = CliRunner().invoke(app, ["train-reward", str(tmp_path / "data"), *words.split()])
    assert result.exit_code == 2
    start = f"{small_disk}/run/model.safetensors: expected to write 1.5 MB, got No space left on device (0."
    assert result.stderr.splitlines()[-1].startswith(start)


def test_a_state_names_its_path_and_size(tmp_path: Path, small_disk: Path) -> None:  # noqa: F811
    write_state({"step": 1}, small_disk)
    before = (small_disk / "state.pt").read_bytes()
    with pytest.raises(
        OSError, match=r"^\S*/state\.pt: expected to write 4\.0 MB, got No space left on device \(0\.5 MB"
    ):
        write_state({"step": 2, "model": {"a": torch.zeros(1_000_000)}}, small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["state.pt"]
    assert (small_disk / "state.pt").read_bytes() == before


def test_events_name_their_folder(tmp_path: Path) -> None:
    class Full:
        def add_scalar(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        close = add_scalar

    board = TensorBoard(tmp_path)
    board.start([], done=0, total=1)
    board.writer.close()
    board.writer = Full()
    for call in (lambda: board.log(1, {"loss": 1.0}), board.close):
        with pytest.raises(OSError, match=rf"^{tmp_path}: expected to write TensorBoard's events, got No space left"):
            call()
