"""Where models come from: embedded weights, folders, the Hugging Face hub; and readable errors when they do not fit."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

WEIGHTS = Path(__file__).parent / "weights"
FILES = ("config.json", "model.safetensors")


def available_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.name for p in WEIGHTS.glob("*") if (p / FILES[0]).is_file())


def resolve(name_or_path: str | Path, **hub_options: Any) -> Path:
    """The folder of a model: embedded name, folder, or hub id (downloaded to the usual cache).

    Raises:
        ValueError: nothing of that name; suggests the nearest known one.
    """
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
    known = available_models()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known models: {', '.join(known)}"
    raise ValueError(f"{name}: no such model or folder; {hint}")


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of a folder.

    Raises:
        ValueError: a file missing, truncated or foreign; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for file in FILES:
        if not (folder / file).is_file():
            raise ValueError(f"{folder / file}: not found; a model folder has {FILES[0]} and {FILES[1]}")
    try:
        config = json.loads((folder / FILES[0]).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / FILES[0]}: expected JSON, got {error}") from error
    if not isinstance(config, dict) or "encoder" not in config:
        raise ValueError(f"{folder / FILES[0]}: expected a reward model's configuration with an encoder")
    try:
        weights = load_file(str(folder / FILES[1]))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / FILES[1]}: truncated or not a safetensors file: {error}") from error
    return {key: config.get(key) for key in ("encoder", "decoder", "head")}, weights
