"""Saving and loading, and what is said of files that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finpercep.models import CLIPIQA, RewardModel, available_models, load_base

GROWN = ("finpercep-tiny", "finpercep-small")
"""Models of which there are three stages."""


def test_round_trip(small_model: RewardModel, model_folder: Path, photo: torch.Tensor) -> None:
    again = RewardModel.from_pretrained(model_folder)
    assert again.fingerprint == small_model.fingerprint
    assert not again.training
    for a, b in zip(again(photo[None]), small_model(photo[None]), strict=True):
        assert torch.equal(a, b)


def test_what_is_pushed_to_the_hub_loads(pushed: Path, photo: torch.Tensor, tmp_path: Path) -> None:
    """Normalizations are folded after the model was made: its first configuration no longer fits."""
    torch.manual_seed(0)
    trained = RewardModel(
        {"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True}, {"width": 8, "norm": True}
    )
    trained.fold_norms()
    assert trained.push_to_hub("owner/name") == "https://hub/commit"
    again = RewardModel.from_pretrained(pushed)
    assert again.fingerprint == trained.fingerprint
    assert torch.equal(again(photo[None]).map, trained(photo[None]).map)
    trained.save_pretrained(tmp_path / "folder", config={"encoder": {"type": "another's"}})
    assert RewardModel.from_pretrained(tmp_path / "folder").config == trained.config


def test_embedded_models_load() -> None:
    names = available_models()
    for grown in GROWN:
        assert [f"{grown}/{stage}" in names for stage in range(4)] == [True, True, True, False]
    for name in names:
        assert RewardModel.from_pretrained(name).fingerprint


@pytest.mark.parametrize("name", GROWN)
def test_embedded_stages_grow(name: str) -> None:
    base, light, full = (RewardModel.from_pretrained(f"{name}/{stage}") for stage in range(3))
    assert base.config["decoder"] is None
    assert (light.config["decoder"]["width"], full.config["decoder"]["width"]) == ("light", "full")
    assert full.config["encoder"] == light.config["encoder"] | {"adapter_rank": 16}
    frozen = light.encoder.state_dict()
    grown = {name: tensor for name, tensor in full.encoder.state_dict().items() if name in frozen}
    assert all(torch.equal(grown[name], frozen[name]) for name in frozen)  # only the adapters have learned


def test_a_path_of_the_name_is_the_name() -> None:
    assert (
        RewardModel.from_pretrained(Path("finpercep-tiny")).fingerprint
        == RewardModel.from_pretrained("finpercep-tiny").fingerprint
    )


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match=r"^finpercep-vit-b16: no such model or folder; did you mean 'finpercep-vit-b-16'"
    ):
        RewardModel.from_pretrained("finpercep-vit-b16")
    with pytest.raises(ValueError, match=r"^qqq: no such model or folder; known models: .*finpercep-vit-l-14"):
        RewardModel.from_pretrained("qqq")
    with pytest.raises(ValueError, match=r"^a \+ 0.5\*b/c: no such model .*; expected one model, not a mixture$"):
        RewardModel.from_pretrained("a + 0.5*b/c")
    with pytest.raises(ValueError, match=r"^./gone/model: no such model or folder"):
        RewardModel.from_pretrained("./gone/model")


def test_unreachable_hub_id(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^owner/name: neither a folder nor a model that the hub gave") as error:
        RewardModel.from_pretrained("owner/name", local_files_only=True, cache_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"torch_dtype": torch.float16},
            r"^torch_dtype: unknown option; use dtype= or \.to\(dtype\) on the loaded model$",
        ),
        ({"device_map": "cuda"}, r"^device_map: unknown option; use \.to\(device\)"),
        (
            {"revision": "main", "reviison": "x"},
            r"^reviison: unknown option; expected revision, token, cache_dir, ",
        ),
    ],
)
def test_unknown_options_are_not_swallowed(
    model_folder: Path, clip_b16: Path, options: dict[str, object], message: str
) -> None:
    for load in (RewardModel.from_pretrained, load_base, CLIPIQA.from_pretrained):
        with pytest.raises(TypeError, match=message):
            load(model_folder, **options)
    with pytest.raises(TypeError, match=message):
        CLIPIQA.from_clip(clip_b16, **options)
    with pytest.raises(TypeError, match=message):
        RewardModel.from_pretrained("finpercep-vit-b-16", **options)
    hub = {
        "revision": "main",
        "token": None,
        "cache_dir": None,
        "local_files_only": True,
        "force_download": False,
    }
    assert RewardModel.from_pretrained(model_folder, **hub).fingerprint


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_a_tensor(file: Path) -> None:
    weights = load_file(file)
    weights.pop("head.mlp.0.bias")
    save_file(weights, file)


def add_a_tensor(file: Path) -> None:
    save_file(load_file(file) | {"extra": torch.zeros(1)}, file)


def reshape_a_tensor(file: Path) -> None:
    save_file(load_file(file) | {"head.mlp.0.bias": torch.zeros(3)}, file)


def foreign_model(file: Path) -> None:
    save_file({"conv.weight": torch.zeros(1)}, file)


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("model.safetensors", truncate, r"model\.safetensors: truncated or not a safetensors file"),
    (
        "model.safetensors",
        lambda f: f.write_bytes(b""),
        r"model\.safetensors: truncated or not a safetensors file",
    ),
    ("model.safetensors", lambda f: f.write_bytes(b"PK\3\4" * 99), r"model\.safetensors: truncated or not"),
    ("model.safetensors", Path.unlink, r"model\.safetensors: not found; a model folder has"),
    ("model.safetensors", drop_a_tensor, r"1 tensors missing, e\.g\. head\.mlp\.0\.bias"),
    ("model.safetensors", add_a_tensor, r"1 tensors unexpected, e\.g\. extra"),
    ("model.safetensors", reshape_a_tensor, r"1 tensors of another shape, e\.g\. head\.mlp\.0\.bias"),
    (
        "model.safetensors",
        foreign_model,
        r"model\.safetensors does not fit config\.json: \d+ tensors missing",
    ),
    ("config.json", Path.unlink, r"config\.json: not found"),
    ("config.json", lambda f: f.write_text("{"), r"config\.json: expected JSON, got"),
    ("config.json", lambda f: f.write_bytes(b"\xff\xfe"), r"config\.json: expected JSON, got"),
    ("config.json", lambda f: f.write_text("[]"), r"config\.json: expected a reward model's configuration"),
    ("config.json", lambda f: f.write_text('{"encoder": "vit"}'), r"config\.json: expected a reward model's"),
    (
        "config.json",
        lambda f: f.write_text('{"encoder": {"type": "x"}}'),
        r"config\.json does not describe .* 'x'",
    ),
    (
        "config.json",
        lambda f: f.write_text('{"encoder": {"type": "conv", "w": 1}}'),
        r"config\.json does not .*'w'",
    ),
]


@pytest.mark.parametrize(("file", "damage", "message"), BAD)
def test_damaged_folders(
    model_folder: Path, tmp_path: Path, file: str, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(model_folder, folder)
    damage(folder / file)
    with pytest.raises(ValueError, match=message) as error:
        RewardModel.from_pretrained(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_old_configurations_without_a_head_load(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["head"]
    (folder / "config.json").write_text(json.dumps(config))
    assert RewardModel.from_pretrained(folder).fingerprint == RewardModel.from_pretrained(model_folder).fingerprint
