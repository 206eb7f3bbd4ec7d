"""Saved models: embedded weights and folders, and readable errors where configuration and weights do not fit.

Both come from anywhere, so the configuration is held against the weights' names and shapes before anything is built.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from finpercep.io.hub import model_folder
from finpercep.io.reasons import one_line
from finpercep.models.presets import PRESETS

WEIGHTS = Path(__file__).parent / "weights"
FILES = ("config.json", "model.safetensors")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
STORED_FLOATS = ("F32", "F16", "BF16", "F64")
"""`FLOATS` by their names in safetensors files. Eight-bit ones mean nothing without their scales."""
LAYERS = 1000  # as many are built without a look at the file
NESTING = 16
"""Levels of lists and objects in a configuration; ours have four."""

Model = TypeVar("Model", bound=nn.Module)


def available_models() -> list[str]:
    """Names of the models that come with the package; `NAME/0` to `NAME/2` are the stages of one's growth."""
    found = [p.parent for pattern in ("*", "*/*") for p in WEIGHTS.glob(f"{pattern}/{FILES[0]}")]
    return sorted(folder.relative_to(WEIGHTS).as_posix() for folder in found)


def resolve(name_or_path: str | Path, **hub_options: Any) -> Path:
    """The folder of a model: embedded name, folder, or hub id (downloaded to the usual cache).

    Raises:
        TypeError: an option that is not one of `finpercep.io.hub.HUB_OPTIONS`.
        ValueError: nothing of that name; suggests the nearest known one.
    """
    embedded = available_models()
    found = WEIGHTS / name_or_path if os.fspath(name_or_path) in embedded else name_or_path
    return model_folder(found, FILES, known=embedded + sorted(PRESETS), **hub_options)


def share_weights(folder: str | Path) -> None:
    """Let those read the weights in `folder` who may read its configuration: safetensors writes for the owner alone."""
    config, weights = (Path(folder) / name for name in FILES)
    weights.chmod(config.stat().st_mode & 0o777)


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: no JSON, or nested more deeply than any configuration; names the file.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, got {one_line(error)}") from error
    if _nested(content) > NESTING:
        raise ValueError(f"{file}: expected JSON of at most {NESTING} levels, got more")
    return content


def _nested(content: Any) -> int:
    levels, inside = 0, [content]
    while inside := [value for value in inside if isinstance(value, (dict, list))]:
        levels += 1
        if levels > NESTING:
            break
        inside = [x for value in inside for x in (value.values() if isinstance(value, dict) else value)]
    return levels


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in a model's folder.

    Raises:
        ValueError: a file is missing, or the configuration is not one of a model with an encoder; names the file.
    """
    for file in FILES:
        if not (folder / file).is_file():
            raise ValueError(f"{folder / file}: not found; a model folder has {FILES[0]} and {FILES[1]}")
    config = read_json(folder / FILES[0])
    if not isinstance(config, dict) or not isinstance(config.get("encoder"), dict):
        raise ValueError(f"{folder / FILES[0]}: expected a reward model's configuration with an encoder")
    return config


class Stored(NamedTuple):
    """Shape of a tensor in a file, and whether its numbers are floating-point ones that a model can have."""

    shape: tuple[int, ...]
    floating: bool


def read_layout(file: Path) -> dict[str, Stored]:
    """Names, shapes and kinds of the tensors in a safetensors file, from its header alone.

    Raises:
        ValueError: truncated, or another file; names it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: Stored(tuple(s.get_shape()), s.get_dtype() in STORED_FLOATS) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: truncated or not a safetensors file: {one_line(error)}") from error


def load_model(
    build: Callable[..., Model],
    folder: Path,
    keys: Sequence[str],
    *,
    kind: str,
    shown: str | Path,
    dtype: torch.dtype | None,
    change: Callable[[dict[str, Any]], dict[str, Any]],
) -> Model:
    """A model from its folder, in evaluation mode, on the default device (the CPU where that is "meta").

    Args:
        build: makes the model from the configuration's `keys` as keyword arguments; one that is absent is None.
        kind: what is loaded, with its article, for messages.
        shown: the name that was asked for, for messages.
        dtype: floating-point type of the model; None is the file's own.
        change: what is done to the encoder's configuration first.

    Raises:
        ImportError: the configuration needs a package that is not installed.
        ValueError: a file is missing, truncated or foreign, or the two do not fit; names it.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype: expected {', '.join(str(t)[6:] for t in FLOATS)} or None, got {dtype}")
    config, layout = read_config(folder), read_layout(folder / FILES[1])
    check_depth(config["encoder"], len(layout), folder / FILES[0])
    options = {key: config.get(key) for key in keys} | {"encoder": change(config["encoder"])}
    device = torch.empty(0).device
    with torch.inference_mode(False):  # else the model could never be trained
        try:
            with torch.device("meta"):
                model = build(**options)
                model = model if dtype is None else model.to(dtype)
        except ImportError:
            raise
        except Exception as error:  # a foreign configuration can fail anywhere
            raise ValueError(f"{shown}: config.json does not describe {kind}: {one_line(error)}") from error
        check_fit(model.state_dict(), layout, f"{shown}: model.safetensors does not fit config.json")
        load_tensors(model, folder / FILES[1], torch.device("cpu") if device.type == "meta" else device, dtype is None)
        return model.eval()


def load_tensors(model: nn.Module, file: Path, device: torch.device, as_stored: bool) -> None:
    """Give a model that was built on the meta device the weights in `file`, in their types or (else) in the model's."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as tensors:
        given = {}
        for name, built in model.state_dict().items():
            value = tensors.get_tensor(name)
            kind = (value.dtype if as_stored else built.dtype) if value.is_floating_point() else torch.int64
            # A copy: what the file's memory is mapped to would change with the file.
            given[name] = value.to(device, kind, copy=True, memory_format=_layout(built))
        model.load_state_dict(given, assign=True)


def _layout(tensor: Tensor) -> torch.memory_format:
    """That in which the model was built: a graph would otherwise lay out its weights at each call."""
    last = torch.channels_last
    is_last = not tensor.is_contiguous() and tensor.dim() == 4 and tensor.is_contiguous(memory_format=last)
    return last if is_last else torch.contiguous_format


def check_depth(encoder: dict[str, Any], tensors: int, file: Path) -> None:
    """Refuse a configuration with more layers than the file has tensors, before they are built.

    Raises:
        ValueError: names `file`, the configuration.
    """
    inner = encoder.get("config")
    depths = encoder.get("depths")
    counts = [*depths, *(1 for _ in depths)] if isinstance(depths, list) else []
    counts += [inner.get("num_hidden_layers")] if isinstance(inner, dict) else []
    layers = sum(count for count in counts if isinstance(count, int))
    if layers > max(tensors, LAYERS):
        raise ValueError(f"{file}: expected at most as many layers as there are tensors ({tensors}), got {layers}")


def check_fit(expected: Mapping[str, Tensor], layout: Mapping[str, Stored], problem: str) -> None:
    """Tensors in a file must be those of a model, in shape and kind of number.

    Raises:
        ValueError: tensors missing, unexpected, of another shape or type; starts with `problem` and names one of them.
    """
    both = sorted(expected.keys() & layout.keys())
    shapes = [name for name in both if tuple(expected[name].shape) != layout[name].shape]
    types = [name for name in both if expected[name].is_floating_point() != layout[name].floating]
    for what, names in (
        ("missing", sorted(expected.keys() - layout.keys())),
        ("unexpected", sorted(layout.keys() - expected.keys())),
        ("of another shape", shapes),
        ("of another type", types),
    ):
        if names:
            raise ValueError(f"{problem}: {len(names)} tensors {what}, e.g. {names[0]}")
