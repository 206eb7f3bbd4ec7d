"""A disk that is full: the error names the file, and the checkpoints that were there stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finpercep.rl.checkpoints import checkpoints
from finpercep.rl.generators import GeneratorConfig, load_generator
from finpercep.rl.loop import train
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.trainer import RLTrainer
from tests.disk import fill, small_disk  # noqa: F401
from tests.rl.generators.pipelines import save_sd3
from tests.rl.test_trainer import ALGORITHMS, config, lines  # noqa: F401


@pytest.mark.parametrize("small_disk", [8000], indirect=True)
def test_a_run_keeps_its_checkpoints(config, small_disk, monkeypatch):  # noqa: F811
    """Full after step 2, which was saved: the first line that no longer fits ends the run, which then goes on."""
    monitors = MonitorConfig(judge="")
    config = replace(config, algorithm=ALGORITHMS["refl"], monitors=monitors, out=str(small_disk / "run"), eval_every=9)
    step = RLTrainer.step

    def filling(trainer):
        if trainer.done == 3:
            fill(small_disk / "full")
        return step(trainer)

    monkeypatch.setattr(RLTrainer, "step", filling)
    with pytest.raises(OSError, match=r"No space left on device \(0\.0 MB are free\).*: '\S*/run/\S+'$") as caught:
        train(config)
    assert Path(caught.value.filename).is_relative_to(small_disk / "run")
    assert [number for number, _ in checkpoints(small_disk / "run")] == [2]
    monkeypatch.setattr(RLTrainer, "step", step)
    (small_disk / "full").unlink()
    train(config)
    assert [line["step"] for line in lines(small_disk / "run")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("small_disk", [64], indirect=True)
def test_a_network_that_does_not_fit_names_its_folder(tmp_path, small_disk):  # noqa: F811
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    folder = save_sd3(tmp_path / "sd3")
    generator = load_generator(str(folder), GeneratorConfig(train="full"))
    with pytest.raises(OSError, match=rf"^{small_disk}/out/transformer: expected to write the weights, got .*No space"):
        generator.save_pretrained(small_disk / "out", torch.float32)
