"""The README's code runs as it stands, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.models import RewardModel

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.fixture(autouse=True)
def small_default(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = RewardModel.from_pretrained
    monkeypatch.setattr(RewardModel, "from_pretrained", lambda name: load(model_folder))


def test_loop_moves_the_generator() -> None:
    generator = torch.nn.Conv2d(3, 3, 3, padding=1)
    before = generator.weight.detach().clone()
    names = {
        "loader": [(torch.rand(2, 3, 24, 32), torch.rand(2, 3, 24, 32))],
        "generator": generator,
        "optimizer": torch.optim.SGD(generator.parameters(), lr=100.0),
    }
    exec(BLOCKS[0], names)
    assert not torch.equal(generator.weight, before)
    assert all(p.grad is None for p in names["reward"].parameters())


@pytest.mark.parametrize("layout", ["tensor", "array"])
def test_reward_function(layout: str, small_model: RewardModel) -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[1], names)
    images = (torch.rand(2, 3, 24, 32) * 255).to(torch.uint8)
    expected = small_model.score(images).score
    given = images.permute(0, 2, 3, 1).numpy() if layout == "array" else images / 255
    scores, details = names["finpercep_score"]("cpu")(given, ["", ""], [{}, {}])  # type: ignore[operator]
    assert torch.allclose(scores, expected, atol=1e-6)
    assert details["map_worst"].shape == (2,)


def test_grpo_step(small_model: RewardModel) -> None:
    velocity, frozen = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
    names = {
        "velocity": velocity,
        "frozen": frozen.requires_grad_(False),
        "sample": torch.randn(24, 3, 16, 16),
        "decode": lambda x: x.sigmoid(),
        "reward": small_model,
    }
    exec(BLOCKS[2], names)
    assert names["stats"].ratio_min == names["stats"].ratio_max == 1
    assert names["groups"].groups == 4
    assert velocity.weight.grad is not None
    assert velocity.weight.grad.abs().sum() > 0


def test_commands_exist() -> None:
    used = set(re.findall(r"^finpercep ([a-z-]+)", README, flags=re.M))
    assert used >= {"score", "info"}
    for command in used:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
