"""Where models come from: embedded weights, folders, the Hugging Face hub; and readable errors when they do not fit."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finpercep.models.presets import PRESETS

WEIGHTS = Path(__file__).parent / "weights"
FILES = ("config.json", "model.safetensors")
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def available_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.name for p in WEIGHTS.glob("*") if (p / FILES[0]).is_file())


def resolve(name_or_path: str | Path, **hub_options: Any) -> Path:
    """The folder of a model: embedded name, folder, or hub id (downloaded to the usual cache).

    Raises:
        TypeError: an option that is not one of `HUB_OPTIONS`.
        ValueError: nothing of that name; suggests the nearest known one.
    """
    check_hub_options(hub_options)
    name = str(name_or_path)
    if name in available_models():
        return WEIGHTS / name
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=list(FILES), **hub_options))
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"{name}: neither a folder nor a model that the hub gave: {reason}") from error
    known = available_models() + sorted(PRESETS)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known models: {', '.join(known)}"
    raise ValueError(f"{name}: no such model or folder; {hint}")


def check_hub_options(options: dict[str, Any]) -> None:
    """Pass `HUB_OPTIONS` alone: the hub's client and `transformers` ignore what they do not know.

    Raises:
        TypeError: another option; names it.
    """
    for name in options:
        if name in HUB_OPTIONS:
            continue
        hint = f"expected {', '.join(HUB_OPTIONS)}"
        if name in ("torch_dtype", "dtype", "device", "device_map"):
            hint = f"use .to({'device' if 'device' in name else 'dtype'}) on the loaded model"
        raise TypeError(f"{name}: unknown option; {hint}")


def share_weights(folder: str | Path) -> None:
    """Let those read the weights in `folder` who may read its configuration: safetensors writes for the owner alone."""
    config, weights = (Path(folder) / name for name in FILES)
    weights.chmod(config.stat().st_mode & 0o777)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in a model's folder.

    Raises:
        ValueError: a file is missing, or the configuration is not one of a model with an encoder; names the file.
    """
    for file in FILES:
        if not (folder / file).is_file():
            raise ValueError(f"{folder / file}: not found; a model folder has {FILES[0]} and {FILES[1]}")
    try:
        config = json.loads((folder / FILES[0]).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / FILES[0]}: expected JSON, got {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("encoder"), dict):
        raise ValueError(f"{folder / FILES[0]}: expected a reward model's configuration with an encoder")
    return config


def load_checkpoint(
    folder: Path, keys: Sequence[str] = ("encoder", "decoder", "head")
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration (only `keys`; None where one is absent) and weights of a folder.

    Raises:
        ValueError: a file missing, truncated or foreign; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder)
    try:
        weights = load_file(str(folder / FILES[1]))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / FILES[1]}: truncated or not a safetensors file: {error}") from error
    return {key: config.get(key) for key in keys}, weights


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Load weights that must fit exactly.

    Raises:
        ValueError: tensors missing, unexpected or of another shape; names `source` and one of them.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    foreign = sorted(weights.keys() - expected.keys())
    shapes = sorted(k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape)
    for problem, names in (("missing", missing), ("unexpected", foreign), ("of another shape", shapes)):
        if names:
            raise ValueError(
                f"{source}: model.safetensors does not fit config.json: {len(names)} tensors {problem}, e.g. {names[0]}"
            )
    model.load_state_dict(weights)


def fingerprint(config: Any, weights: dict[str, Tensor]) -> str:
    """16 hex digits that identify a JSON-able configuration and weights (as float32)."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
