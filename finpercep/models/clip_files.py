"""CLIP checkpoints in the Hugging Face layout: where they are, and the vision tower in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finpercep.models.checkpoint import check_hub_options

CONFIG, SAFETENSORS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"

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
        TypeError: an option that is not one of `HUB_OPTIONS`.
        ValueError: neither a folder nor reachable.
    """
    check_hub_options(hub_options)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name = str(source)
    try:
        config = hf_hub_download(name, CONFIG, **hub_options)
        try:
            hf_hub_download(name, SAFETENSORS, **hub_options)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            hf_hub_download(name, PICKLE, **hub_options)
    except Exception as error:  # the hub's client raises many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{name}: neither a folder with a CLIP checkpoint nor one that the hub gave: {reason}"
        ) from error
    return Path(config).parent


def vision_config(folder: Path) -> dict[str, Any]:
    """Configuration of the vision tower in a CLIP checkpoint, for `ViTEncoder`; only the keys that define it.

    Raises:
        ValueError: no CLIP configuration there.
    """
    from transformers import CLIPVisionConfig

    file = folder / CONFIG
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected the configuration of a CLIP model, got {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(f"{file}: expected the configuration of a CLIP model, got model_type {kind!r}")
    vision = config
    if kind == "clip":  # files of 2021 keep the differences to the defaults under another name
        vision = config.get("vision_config") or config.get("vision_config_dict") or {}
    known = {key: vision[key] for key in _VISION_KEYS if key in vision}
    complete = CLIPVisionConfig(**known)
    return {"model_type": "clip_vision_model", **{key: getattr(complete, key) for key in _VISION_KEYS}}


def read_weights(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors of a checkpoint whose names start so; from safetensors, or from a weights-only pickle.

    Raises:
        ValueError: no weights there, or not readable; names the file.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / SAFETENSORS
    if file.is_file():
        try:
            with safe_open(str(file), framework="pt") as tensors:
                return {key: tensors.get_tensor(key) for key in tensors.keys() if key.startswith(prefixes)}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: truncated or not a safetensors file: {error}") from error
    file = folder / PICKLE
    if not file.is_file():
        raise ValueError(f"{folder / SAFETENSORS}: not found; a CLIP folder has {CONFIG} and {SAFETENSORS}")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file}: not loadable as weights only: {str(error).splitlines()[0]}") from error
    return {key: value for key, value in state.items() if key.startswith(prefixes)}


def load_vision_tower(encoder: nn.Module, folder: Path) -> None:
    """Copy the vision tower (`vision_model.…`) of a CLIPModel or CLIPVisionModel checkpoint into a `ViTEncoder`.

    Layers after the encoder's last tap are left out.

    Raises:
        ValueError: a tensor is missing or has another shape; names the folder and the tensor.
    """
    given = {_encoder_name(key): value for key, value in read_weights(folder, ("vision_model.",)).items()}
    expected = encoder.state_dict()
    wanted = {key: given[key] for key in expected if key in given}
    missing = sorted(expected.keys() - wanted.keys())
    if missing:
        raise ValueError(f"{folder}: {len(missing)} tensors of the vision tower are missing, e.g. {missing[0]}")
    for key, value in wanted.items():
        if value.shape != expected[key].shape:
            raise ValueError(f"{folder}: {key}: expected shape {tuple(expected[key].shape)}, got {tuple(value.shape)}")
    encoder.load_state_dict(wanted)


def _encoder_name(key: str) -> str:
    key = key.removeprefix("vision_model.")
    for theirs, ours in _RENAMED:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key
