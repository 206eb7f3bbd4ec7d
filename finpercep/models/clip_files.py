"""CLIP checkpoints in the Hugging Face layout: where they are, and the vision tower in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finpercep.io.hub import model_folder
from finpercep.io.reasons import one_line
from finpercep.models.checkpoint import FLOATS, Stored, check_depth, read_json, read_layout
from finpercep.models.vit_encoder import ViTEncoder

CONFIG, SAFETENSORS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
_TOWER = "vision_model."
_EXPECTED = "the configuration of a CLIP model"

_VISION_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)
# Names in the files -> names in `ViTEncoder`, which do not change with the version of transformers.
_RENAMED = (("pre_layrnorm.", "pre_norm."), ("post_layernorm.", "post_norm."), ("encoder.layers.", "layers."))


def clip_folder(source: str | Path, **hub_options: Any) -> Path:
    """The folder of a CLIP checkpoint: `source` itself, or what the hub gives for that id (in the usual cache).

    Raises:
        TypeError: an option that is not one of `finpercep.io.hub.HUB_OPTIONS`.
        ValueError: neither a folder nor reachable.
    """
    kind = "a CLIP checkpoint"
    folder = model_folder(source, (CONFIG, SAFETENSORS), kind=kind, **hub_options)
    if folder == Path(source) or (folder / SAFETENSORS).is_file():
        return folder
    return model_folder(source, (CONFIG, PICKLE), kind=kind, **hub_options)


def vision_config(folder: Path) -> dict[str, Any]:
    """Configuration of the vision tower in a CLIP checkpoint, for `ViTEncoder`; only the keys that define it.

    Raises:
        ValueError: no CLIP configuration there.
    """
    from transformers import CLIPVisionConfig

    file = folder / CONFIG
    try:
        config = read_json(file)
    except ValueError as error:
        raise ValueError(str(error).replace("expected JSON", f"expected {_EXPECTED}")) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(f"{file}: expected {_EXPECTED}, got model_type {kind!r}")
    vision = config
    if kind == "clip":  # files of 2021 keep the differences to the defaults under another name
        vision = config.get("vision_config") or config.get("vision_config_dict") or {}
    try:
        known = {key: vision[key] for key in _VISION_KEYS if key in vision}
        complete = CLIPVisionConfig(**known)
    except Exception as error:  # newer versions of transformers check types
        raise ValueError(f"{file}: expected {_EXPECTED}, got {one_line(error)}") from error
    return {"model_type": "clip_vision_model", **{key: getattr(complete, key) for key in _VISION_KEYS}}


def read_weights(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors of a checkpoint whose names start so; from safetensors, or from a weights-only pickle.

    Raises:
        ValueError: no weights there, or not readable; names the file.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / SAFETENSORS
    if not file.is_file():
        return {key: value for key, value in _unpickled(folder, "cpu").items() if key.startswith(prefixes)}
    try:
        with safe_open(str(file), framework="pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys() if key.startswith(prefixes)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: truncated or not a safetensors file: {one_line(error)}") from error


def _unpickled(folder: Path, device: str) -> dict[str, Tensor]:
    file = folder / PICKLE
    if not file.is_file():
        raise ValueError(f"{folder / SAFETENSORS}: not found; a CLIP folder has {CONFIG} and {SAFETENSORS}")
    try:
        state = torch.load(file, map_location=device, weights_only=True)
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:
        raise ValueError(f"{file}: not loadable as weights only: {one_line(error)}") from error


def check_vision_tower(folder: Path, config: dict[str, Any], taps: Sequence[int]) -> None:
    """Hold the shapes that `config` asks for against those in the checkpoint, before any of it is built.

    Raises:
        ValueError: a tensor of the tower is missing, or has another shape or type; names the folder and the tensor.
    """
    stored = _layout(folder)
    prefix = _tower_prefix(folder, stored)
    given = {_encoder_name(key): value for key, value in stored.items() if key.startswith(prefix)}
    check_depth({"config": config}, len(given), folder / CONFIG)
    try:
        with torch.device("meta"):
            expected = ViTEncoder(config, taps).state_dict()
    except Exception as error:
        raise ValueError(f"{folder / CONFIG}: expected {_EXPECTED}, got {one_line(error)}") from error
    missing = sorted(expected.keys() - given.keys())
    if missing:
        raise ValueError(f"{folder}: {len(missing)} tensors of the vision tower are missing, e.g. {missing[0]}")
    for key, value in expected.items():
        if given[key].shape != tuple(value.shape):
            raise ValueError(f"{folder}: {key}: expected shape {tuple(value.shape)}, got {given[key].shape}")
        if not given[key].floating:
            raise ValueError(f"{folder}: {key}: expected floating-point weights, got others")


def load_vision_tower(encoder: ViTEncoder, folder: Path) -> None:
    """Copy the vision tower of a CLIPModel (`vision_model.…`) or CLIPVisionModel checkpoint into an encoder.

    Layers after the encoder's last tap are left out. `check_vision_tower` says what does not fit.
    """
    prefix = _tower_prefix(folder, _layout(folder))
    given = {_encoder_name(key): value for key, value in read_weights(folder, (prefix,)).items()}
    encoder.load_state_dict({key: given[key] for key in encoder.state_dict()})


def _layout(folder: Path) -> dict[str, Stored]:
    """Shapes and kinds of all tensors, by name."""
    if (folder / SAFETENSORS).is_file():
        return read_layout(folder / SAFETENSORS)
    return {key: Stored(tuple(v.shape), v.dtype in FLOATS) for key, v in _unpickled(folder, "meta").items()}


def _tower_prefix(folder: Path, names: Iterable[str]) -> str:
    """What the tower's names begin with: nothing in a CLIPVisionModel of a transformers that saves it without."""
    alone = read_json(folder / CONFIG).get("model_type") == "clip_vision_model"
    return "" if alone and not any(name.startswith(_TOWER) for name in names) else _TOWER


def _encoder_name(key: str) -> str:
    key = key.removeprefix(_TOWER)
    for theirs, ours in _RENAMED:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key
