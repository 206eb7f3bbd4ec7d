"""Saved models by name: a folder, or a copy of what the Hugging Face hub has under that id."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from finpercep.io.reasons import one_line

__all__ = ["HUB_OPTIONS", "check_hub_options", "model_folder"]

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""What every look-up passes on to the hub's client."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)


def model_folder(
    name_or_path: str | os.PathLike[str],
    patterns: Sequence[str] | None = None,
    *,
    kind: str = "a model",
    known: Collection[str] | None = None,
    **hub_options: Any,
) -> Path:
    """The folder of a saved model: `name_or_path` itself, or the hub's copy of it, downloaded to the usual cache.

    Args:
        name_or_path: a folder ("~" is the home folder), or a hub id.
        patterns: the files to download, e.g. ["*.json", "*.safetensors"]; None is all of them.
        kind: what is looked for, with its article, for the message.
        known: other names that the caller knows. Where it is given, only "owner/name" is asked of the hub, and anything
            else is an error that suggests the nearest of them.
        hub_options: those of `HUB_OPTIONS`.

    Returns:
        The folder; nothing in it has been read.

    Raises:
        TypeError: an option that is not one of `HUB_OPTIONS`.
        ValueError: neither a folder nor what the hub has, or it cannot be reached; one line that starts with the name.
    """
    check_hub_options(hub_options)
    name = os.path.expanduser(os.fspath(name_or_path))
    if os.path.isdir(name):
        return Path(name)
    if known is not None and not HUB_ID.fullmatch(name):
        raise ValueError(f"{name}: no such model or folder; {_hint(name, known)}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=None if patterns is None else list(patterns), **hub_options))
    except Exception as error:  # the hub's client raises many types: no network, no such name, no permission
        near = difflib.get_close_matches(name, known or (), n=1, cutoff=0.8)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{name}: {hint}neither a folder nor {kind} that the hub gave: {one_line(error)}") from error


def check_hub_options(options: dict[str, Any]) -> None:
    """Pass `HUB_OPTIONS` alone: the hub's client and `transformers` ignore what they do not know.

    Raises:
        TypeError: another option; names it.
    """
    for name in options:
        if name in HUB_OPTIONS:
            continue
        hint = f"expected {', '.join(HUB_OPTIONS)}"
        if name == "torch_dtype":
            hint = "use dtype= or .to(dtype) on the loaded model"
        elif name == "dtype":
            hint = "use .to(dtype) on the loaded model"
        elif name in ("device", "device_map"):
            hint = "use .to(device) on the loaded model"
        raise TypeError(f"{name}: unknown option; {hint}")


def _hint(name: str, known: Collection[str]) -> str:
    if " + " in name or "*" in name:
        return "expected one model, not a mixture"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"known models: {', '.join(known)}"
