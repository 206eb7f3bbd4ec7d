"""LoRA by peft on a UNet or transformer of diffusers; files as diffusers reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finpercep.io.files import atomic_write
from finpercep.rl.generators.config import GeneratorConfig


def add_adapters(denoiser: Any, config: GeneratorConfig) -> None:
    """Put adapters on `config.layers`; they alone are trained, in float32.

    Raises:
        ImportError: peft is not installed.
        ValueError: no layer of these names.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError(f"train: lora needs peft ({error}); pip install 'finpercep[lora]'") from error
    found = [name for name, _ in denoiser.named_modules() if name.endswith(tuple(f".{end}" for end in config.layers))]
    if not found:
        raise ValueError(
            f"layers: expected names of layers of {type(denoiser).__name__}, got {', '.join(config.layers)}, "
            "none of which it has"
        )
    denoiser.add_adapter(
        LoraConfig(
            r=config.rank, lora_alpha=config.alpha, init_lora_weights="gaussian", target_modules=list(config.layers)
        )
    )
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def adapters_off(denoiser: Any) -> Iterator[None]:
    """The model as it was before it got adapters, inside."""
    denoiser.disable_adapters()
    try:
        yield
    finally:
        denoiser.enable_adapters()


def save_adapters(
    denoiser: nn.Module, part: str, pipeline_class: str, config: GeneratorConfig, folder: str | Path, dtype: Any = None
) -> None:
    """Write pytorch_lora_weights.safetensors, as `pipe.load_lora_weights(folder)` of diffusers reads it.

    alpha / rank is multiplied into the second factor, so that every version of diffusers gives the same results without
    being told of it.

    Args:
        denoiser: with adapters.
        part: its name in the pipeline: "unet" or "transformer".
        pipeline_class: of diffusers, which knows the names of the weights.
        config: that the adapters were made with.
        folder: is made where it is missing.
        dtype: of the file; None leaves the weights' own.

    Raises:
        OSError: a full disk, no permission; names the file.
    """
    import diffusers
    from peft.utils import get_peft_model_state_dict

    state = {
        name: (tensor * (config.alpha / config.rank) if ".lora_B." in name else tensor).to(dtype or tensor.dtype)
        for name, tensor in get_peft_model_state_dict(denoiser).items()
    }

    def write(weights: dict[str, Tensor], path: str) -> None:
        from safetensors.torch import save

        with atomic_write(Path(path)) as file:
            file.write(save({name: tensor.contiguous() for name, tensor in weights.items()}, {"format": "pt"}))

    getattr(diffusers, pipeline_class).save_lora_weights(
        str(folder), **{f"{part}_lora_layers": state}, save_function=write
    )
