"""``finpercep info``: what is installed, built, found and chosen."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

__all__ = ["package_version", "print_info"]


def package_version(name: str) -> str:
    """Version of an installed distribution, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def device_name() -> str:
    """The device that scoring uses by default, with its threads or memory."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"cuda: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"cpu: {torch.get_num_threads()} threads, {platform.machine()}"


def operator_lines() -> list[tuple[str, str]]:
    """Backends (usable, or why not), the one chosen per device, and how the extension was built."""
    from finpercep.ops import backends

    found = backends()
    lines = [
        (f"backend {name}", "available" if state is True else f"not available: {state}")
        for name, state in found["available"].items()
    ]
    lines += [(f"chosen on {device}", str(name)) for device, name in found["chosen"].items()]
    return (
        lines
        + _build_lines("extension", found["build"], found["load_error"])
        + _build_lines("cuda extension", found["build_cuda"], found["load_error_cuda"])
    )


def _build_lines(title: str, build: dict[str, Any] | None, error: str) -> list[tuple[str, str]]:
    if build is not None:
        return [(f"{title} {key.replace('_', ' ')}", _text(value)) for key, value in build.items()]
    if not error.startswith("ModuleNotFoundError"):
        return [(title, f"built, but it does not load: {error}")]
    hint = "; FINPERCEP_CUDA_ARCHS=all builds it where nvcc is, without a GPU too" if "cuda" in title else ""
    return [(title, f"not built{hint}")]


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple, set)):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def model_lines() -> list[tuple[str, str]]:
    """The models that come with the package: parameters and fingerprint, or why one does not load."""
    from finpercep.models import RewardModel, available_models
    from finpercep.models.presets import PRESETS

    lines = []
    for name in available_models():
        try:
            model = RewardModel.from_pretrained(name)
        except ValueError as error:
            lines.append((f"model {name}", str(error)))
            continue
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        lines.append((f"model {name}", f"{millions:.2f} M parameters, fingerprint {model.fingerprint}"))
    lines = lines or [("models", "none embedded")]
    return lines + [(f"preset {name}", f"{p.clip} with new, untrained parts") for name, p in PRESETS.items()]


def print_info() -> None:
    """Print everything, one line each."""
    from rich.console import Console
    from rich.text import Text

    lines = [
        ("finpercep", package_version("finpercep")),
        ("python", f"{platform.python_version()} ({platform.system()} {platform.machine()})"),
        *((name, package_version(name)) for name in ("torch", "transformers", "numpy", "pillow")),
        ("device", device_name()),
    ]
    lines += [*operator_lines(), *model_lines()]
    width = max(len(name) for name, _ in lines)
    console = Console(highlight=False)
    for name, value in lines:
        console.print(Text.assemble((name.ljust(width + 3), "bold"), value), soft_wrap=True)
