"""The code of "The reward in your own loop" runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from finpercep.models import RewardModel

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "loop.md").read_text()
LOSS, FLOW_GRPO, MIXTURE, STEP = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture(autouse=True)
def small_default(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = RewardModel.from_pretrained
    monkeypatch.setattr(RewardModel, "from_pretrained", lambda *_, **__: load(model_folder))


def test_loss_moves_the_generator() -> None:
    generator = torch.nn.Conv2d(3, 3, 3, padding=1)
    before = generator.weight.detach().clone()
    names: dict[str, Any] = {
        "loader": [(torch.rand(2, 3, 24, 32), torch.rand(2, 3, 24, 32))],
        "generator": generator,
        "optimizer": torch.optim.SGD(generator.parameters(), lr=100.0),
    }
    exec(LOSS, names)
    assert not torch.equal(generator.weight, before)
    assert all(p.grad is None for p in names["reward"].parameters())


@pytest.mark.parametrize("layout", ["tensor", "array"])
def test_reward_function(layout: str, small_model: RewardModel) -> None:
    names: dict[str, Any] = {}
    exec(FLOW_GRPO, names)
    images = (torch.rand(2, 3, 24, 32) * 255).to(torch.uint8)
    expected = small_model.score(images).score
    given = images.permute(0, 2, 3, 1).numpy() if layout == "array" else images / 255
    scores, details = names["finpercep_score"]("cpu")(given, ["", ""], [{}, {}])
    assert torch.allclose(scores, expected, atol=1e-6)
    assert details["map_worst"].shape == (2,)


def test_mixture_is_the_sum_of_its_parts(small_model: RewardModel) -> None:
    names: dict[str, Any] = {"images": torch.rand(6, 3, 32, 32), "low": torch.rand(6, 3, 8, 8)}
    exec(MIXTURE, names)
    stage = names["stage"](names["images"]).score
    consistency = names["LRConsistency"]()(names["images"], lr=names["low"]).score
    assert torch.allclose(names["scores"], stage + 0.5 * consistency)
    assert names["advantages"].shape == (6,)
    assert names["groups"]["stage"].groups == 1


def test_grpo_step(small_model: RewardModel) -> None:
    velocity, frozen = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
    names: dict[str, Any] = {
        "velocity": velocity,
        "frozen": frozen.requires_grad_(False),
        "sample": torch.randn(24, 3, 16, 16),
        "decode": lambda x: x.sigmoid(),
        "reward": small_model,
    }
    exec(STEP, names)
    assert names["stats"].ratio_min == names["stats"].ratio_max == 1
    assert names["groups"].groups == 4
    assert velocity.weight.grad is not None
    assert velocity.weight.grad.abs().sum() > 0
