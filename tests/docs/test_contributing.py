"""The templates of CONTRIBUTING.md: the reward works as it stands, and the files that an operator copies are there."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from finpercep.data import MakeConfig, load_scenes, make_dataset
from finpercep.data.kinds import Kind
from finpercep.data.masks.kinds import MASK_KINDS
from finpercep.data.sources.kinds import SOURCE_KINDS
from finpercep.io.pictures import as_picture, save_image
from finpercep.rewards import Mixture, StageReward, load_reward

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
REWARD, SOURCE, MASK = (dedent(code) for code in re.findall(r"^ *```python\n(.*?)```", TEXT, flags=re.S | re.M))


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


def test_source_and_mask_templates(photo: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "poster.py").write_text(SOURCE)
    (tmp_path / "stripe.py").write_text(MASK)
    monkeypatch.syspath_prepend(tmp_path)
    for table, places in ((SOURCE_KINDS, r'"poster": (Kind\(.*?\))`'), (MASK_KINDS, r'"stripe": (Kind\(.*?\))`')):
        line = re.findall(places, TEXT)[0].replace("{_SOURCES}.", "").replace("{_MASKS}.", "")
        kind = eval(line, {"Kind": Kind})
        monkeypatch.setitem(table, kind.usage.partition(":")[0], kind)
    save_image(as_picture(photo), tmp_path / "photos" / "a.png")

    config = MakeConfig(masks=("stripe",), masks_per_image=2, val_share=0.0, feathered=0.0)
    made = make_dataset(str(tmp_path / "photos"), ["poster:4"], tmp_path / "fgr", config)
    assert sum(entry["rows"] for entry in made.manifest["files"]) == 2
    (scene,) = load_scenes(tmp_path / "fgr", "train")
    assert scene.sources == ["4"]  # as SOURCE names it where no NAME= stands before
    assert (scene.gt // 64 * 64 == scene.sr("4")).all()
    sample = scene.draw(torch.Generator().manual_seed(0))
    assert sample is not None
    assert sample.row["mask_kind"] == "stripe"
    assert set(sample.mask.float().mean((0, 2)).tolist()) == {0.0, 255.0}
