"""S_base: which model a folder or name gives, and that it is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import finpercep
from finpercep.models import CLIPIQA, RewardModel, load_base
from finpercep.models.presets import PRESETS


def test_a_reward_model(small_model: RewardModel, model_folder: Path, photo: torch.Tensor) -> None:
    base = load_base(model_folder)
    assert isinstance(base, RewardModel)
    assert not base.training
    assert not any(p.requires_grad for p in base.parameters())
    assert torch.equal(base(photo[None]).score, small_model(photo[None]).score)
    tiny = RewardModel.from_pretrained("finpercep-tiny")
    assert load_base("finpercep-tiny").fingerprint == tiny.fingerprint


def test_clip_iqa(clip_b16: Path, photo: torch.Tensor, tmp_path: Path) -> None:
    model = CLIPIQA.from_clip(clip_b16)
    model.save_pretrained(tmp_path)
    base = load_base(tmp_path)
    assert isinstance(base, CLIPIQA)
    assert not base.training
    assert not any(p.requires_grad for p in base.parameters())
    assert torch.equal(base(photo[None]).score, model(photo[None]).score)


def test_a_preset_is_clip_iqa_on_its_checkpoint(clip_b16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = PRESETS["finpercep-vit-b-16"]
    monkeypatch.setitem(PRESETS, "finpercep-vit-b-16", entry._replace(clip=str(clip_b16)))
    assert load_base("finpercep-vit-b-16").fingerprint == CLIPIQA.from_clip(clip_b16).fingerprint
    assert load_base(Path("finpercep-vit-b-16")).fingerprint == CLIPIQA.from_clip(clip_b16).fingerprint


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: not found; a model folder has"):
        load_base(tmp_path)
    with pytest.raises(ValueError, match=r"^finpercep-tny: no such model or folder; did you mean"):
        load_base("finpercep-tny")
    with pytest.raises(ValueError, match=r"^finpercep-tiny/7: did you mean 'finpercep-tiny/\d'\? neither a folder nor"):
        load_base("finpercep-tiny/7", local_files_only=True)


def test_clip_iqa_is_a_public_name() -> None:
    assert finpercep.CLIPIQA is CLIPIQA
    assert "CLIPIQA" in dir(finpercep)
