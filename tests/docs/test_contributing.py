"""The templates of CONTRIBUTING.md: the reward works as it stands, and the files that an operator copies are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from finpercep.rewards import Mixture, StageReward, load_reward

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
REWARD = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)[0]


def test_reward_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    reward: Any = load_reward("my_rewards:Colorfulness")
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    images = torch.cat([red, torch.full((1, 3, 4, 4), 0.5)])
    assert reward(images).score.tolist() == [1.0, 0.0]
    assert StageReward(reward)(images).score.tolist() == [1.0, 0.0]
    assert Mixture({"color": (reward, 2.0)})(images).score.tolist() == [2.0, 0.0]


def test_operator_template_names_files_that_exist() -> None:
    copied = re.findall(r"for file in (.*?); do", TEXT, flags=re.S)[0].replace("\\\n", " ").split()
    assert len(copied) == 7
    assert [name for name in copied if not (ROOT / name).is_file()] == []


def test_an_operator_is_at_most_twelve_places() -> None:
    section = TEXT.partition("## Adding an operator")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\d+\. ", section, flags=re.M)) <= 12
