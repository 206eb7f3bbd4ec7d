"""``finpercep info``: what is installed, built, found and chosen."""

from __future__ import annotations

import platform
from typing import Any


def info() -> None:
    """Show versions, the device, the compiled operators and the available models."""
    from rich.console import Console
    from rich.text import Text

    from finpercep.runs.machine import device_name, package_version

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
    hint = "; with nvcc installed, FINPERCEP_CUDA_ARCHS=all builds it, even without a GPU" if "cuda" in title else ""
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
