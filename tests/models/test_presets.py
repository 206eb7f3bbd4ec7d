"""Presets: the encoder of a real-layout CLIP checkpoint, in a model that is said to be untrained."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finpercep.models import RewardModel, available_models
from finpercep.models.presets import PRESETS

Photo = Callable[..., Tensor]
UNTRAINED = "untrained; scores and maps mean nothing"


def preset(name: str, **options: Any) -> RewardModel:
    with pytest.warns(UserWarning, match=UNTRAINED):
        return RewardModel.from_preset(name, **options)


@pytest.mark.parametrize("decoder", ["light", "full", None])
def test_builds_around_the_checkpoint(clip_b16: Path, make_photo: Photo, decoder: str | None) -> None:
    model = preset("finpercep-vit-b-16", clip=clip_b16, decoder=decoder)
    stored = load_file(clip_b16 / "model.safetensors")
    ours = model.encoder.state_dict()
    assert torch.equal(ours["layers.11.mlp.fc2.weight"], stored["vision_model.encoder.layers.11.mlp.fc2.weight"])
    assert torch.equal(ours["pre_norm.bias"], stored["vision_model.pre_layrnorm.bias"])
    assert len(ours) == sum(key.startswith("vision_model.") for key in stored)
    out = model(make_photo(50, 70)[None])
    assert out.score.shape == (1,)
    assert model.has_map == (decoder is not None)
    assert out.map is None if decoder is None else out.map.shape == (1, 1, 50, 70)
    assert not model.training


def test_a_float_image_scores_as_its_file(clip_b16: Path, make_photo: Photo, tmp_path: Path) -> None:
    model = preset("finpercep-vit-b-16", clip=clip_b16)
    images = make_photo(40, 60)[None] * 1.5 - 0.2  # between the levels of a file, and beyond both ends
    stored = (images.clamp(0, 1) * 255).round() / 255
    assert not torch.equal(images, stored)
    model.save_pretrained(tmp_path)
    for one in (model, RewardModel.from_pretrained(tmp_path)):
        assert torch.equal(one(images).score, one(stored).score)
        assert torch.equal(one(images).map, one(stored).map)


def test_vit_l_14(clip_l14: Path) -> None:
    model = preset("finpercep-vit-l-14", clip=clip_l14)
    assert model.config["encoder"]["taps"] == [6, 12, 18, 24]
    assert model.encoder.stride == 14


def test_both_layouts_give_the_same(clip_b16: Path, tmp_path: Path) -> None:
    """A file with only the vision tower, with the names it has on the hub, and a configuration of 2021."""
    weights = load_file(clip_b16 / "model.safetensors")
    vision = {key: value for key, value in weights.items() if key.startswith("vision_model.")}
    vision["vision_model.embeddings.position_ids"] = torch.arange(17)[None]  # in the old files, and of no use
    config = json.loads((clip_b16 / "config.json").read_text())
    layouts = {
        "vision": {**config["vision_config"], "model_type": "clip_vision_model"},
        "old": {"model_type": "clip", "vision_config": None, "vision_config_dict": config["vision_config"]},
    }
    expected = preset("finpercep-vit-b-16", clip=clip_b16)
    for name, layout in layouts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(layout))
        save_file(vision, tmp_path / name / "model.safetensors")
        assert preset("finpercep-vit-b-16", clip=tmp_path / name).fingerprint == expected.fingerprint
    (tmp_path / "pickle").mkdir()
    shutil.copy(clip_b16 / "config.json", tmp_path / "pickle")
    torch.save(weights, tmp_path / "pickle" / "pytorch_model.bin")
    assert preset("finpercep-vit-b-16", clip=tmp_path / "pickle").fingerprint == expected.fingerprint


def test_a_vision_model_as_transformers_saves_it(clip_b16: Path, tmp_path: Path) -> None:
    """With or without a prefix before the names, which differs between versions of transformers."""
    from transformers import CLIPVisionModel

    expected = preset("finpercep-vit-b-16", clip=clip_b16).fingerprint
    CLIPVisionModel.from_pretrained(clip_b16).save_pretrained(tmp_path / "saved")
    assert preset("finpercep-vit-b-16", clip=tmp_path / "saved").fingerprint == expected
    weights = load_file(clip_b16 / "model.safetensors")
    bare = {k.removeprefix("vision_model."): v for k, v in weights.items() if k.startswith("vision_model.")}
    shutil.copytree(tmp_path / "saved", tmp_path / "bare")
    save_file(bare, tmp_path / "bare" / "model.safetensors")
    assert preset("finpercep-vit-b-16", clip=tmp_path / "bare").fingerprint == expected
    (tmp_path / "bare" / "model.safetensors").unlink()
    torch.save(bare, tmp_path / "bare" / "pytorch_model.bin")
    assert preset("finpercep-vit-b-16", clip=tmp_path / "bare").fingerprint == expected
    shutil.copy(clip_b16 / "config.json", tmp_path / "bare")  # of a whole CLIP: its names have the prefix
    with pytest.raises(ValueError, match="tensors of the vision tower are missing"):
        RewardModel.from_preset("finpercep-vit-b-16", clip=tmp_path / "bare")


def test_a_pickle_with_code_is_refused(clip_b16: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    shutil.copy(clip_b16 / "config.json", tmp_path)
    torch.save({"vision_model.x": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin: not loadable as weights only"):
        RewardModel.from_preset("finpercep-vit-b-16", clip=tmp_path)
    assert not (tmp_path / "executed").exists()


def test_new_parts_follow_the_seed_alone(clip_b16: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = preset("finpercep-vit-b-16", clip=clip_b16)
    assert torch.equal(torch.rand(3), expected)  # the caller's random numbers are left as they were
    assert preset("finpercep-vit-b-16", clip=clip_b16).fingerprint == first.fingerprint
    assert preset("finpercep-vit-b-16", clip=clip_b16, seed=1).fingerprint != first.fingerprint


def test_round_trip_is_exact(clip_b16: Path, make_photo: Photo, tmp_path: Path) -> None:
    model = preset("finpercep-vit-b-16", clip=clip_b16, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    assert "attn_implementation" not in (tmp_path / "config.json").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a saved model no longer warns: whoever trained it says what it is
        again = RewardModel.from_pretrained(tmp_path, attn_implementation="eager")
        other = RewardModel.from_pretrained(tmp_path)
    images = make_photo(40, 60)[None]
    assert torch.equal(again(images).score, model(images).score)
    assert torch.equal(again(images).map, model(images).map)
    assert again.fingerprint == other.fingerprint == model.fingerprint
    assert (other(images).map - model(images).map).abs().max() < 1e-6


def test_from_pretrained_by_name(clip_b16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = PRESETS["finpercep-vit-b-16"]
    assert entry.clip == "openai/clip-vit-base-patch16"
    monkeypatch.setitem(PRESETS, "finpercep-vit-b-16", entry._replace(clip=str(clip_b16)))
    with pytest.warns(UserWarning, match=UNTRAINED):
        model = RewardModel.from_pretrained("finpercep-vit-b-16")
    with pytest.warns(UserWarning, match=UNTRAINED):
        by_path = RewardModel.from_pretrained(Path("finpercep-vit-b-16"))
    expected = preset("finpercep-vit-b-16", clip=clip_b16).fingerprint
    assert (model.fingerprint, by_path.fingerprint) == (expected, expected)
    assert not set(PRESETS) & set(available_models())  # those come with the package; presets do not


def test_offline_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^openai/clip-vit-large-patch14: neither a folder nor a CLIP checkpoint that the hub gave"
    ) as error:
        RewardModel.from_pretrained("finpercep-vit-l-14", local_files_only=True, cache_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_unknown_names_suggest_presets() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'finpercep-vit-l-14'"):
        RewardModel.from_pretrained("finpercep-vit-l14")
    with pytest.raises(ValueError, match=r"^vit: no such preset; presets: finpercep-vit-b-16, finpercep-vit-l-14"):
        RewardModel.from_preset("vit")


def test_checkpoints_that_do_not_fit(clip_b16: Path, tmp_path: Path) -> None:
    def broken(name: str, change: Callable[[dict[str, Tensor]], object]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(clip_b16 / "config.json", folder)
        weights = load_file(clip_b16 / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")
        return folder

    key = "vision_model.encoder.layers.3.mlp.fc1.bias"
    cases = {
        "12 layers.*16.*got 24 layers and patches of 14": clip_b16,
        "1 tensors of the vision tower are missing, e.g. layers.3.mlp.fc1.bias": broken("a", lambda w: w.pop(key)),
        r"layers.3.mlp.fc1.bias: expected shape \(48,\), got \(7,\)": broken(
            "b", lambda w: w.update({key: torch.zeros(7)})
        ),
        "config.json: expected the configuration of a CLIP model, got model_type None": tmp_path / "c",
        "config.json: expected the configuration of a CLIP model, got .*No such file": tmp_path / "d",
        "model.safetensors: not found; a CLIP folder has": tmp_path / "e",
        "model.safetensors: truncated or not a safetensors file": broken("f", lambda w: None),
    }
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text('{"encoder": {}}')
    (tmp_path / "d").mkdir()
    (tmp_path / "e").mkdir()
    shutil.copy(clip_b16 / "config.json", tmp_path / "e")
    whole = (tmp_path / "f" / "model.safetensors").read_bytes()
    (tmp_path / "f" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(clip_b16, tmp_path / "g")
    config = json.loads((tmp_path / "g" / "config.json").read_text())
    config["vision_config"] |= {"num_hidden_layers": 24, "patch_size": 14}
    (tmp_path / "g" / "config.json").write_text(json.dumps(config))
    cases["12 layers.*16.*got 24 layers and patches of 14"] = tmp_path / "g"
    for message, folder in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            RewardModel.from_preset("finpercep-vit-b-16", clip=folder)
        assert "\n" not in str(error.value)
        assert str(folder) in str(error.value)
