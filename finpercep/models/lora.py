"""LoRA adapters on the attention of a vision transformer, for the last stage of the curriculum."""

from __future__ import annotations

from torch import nn

from finpercep.models.vit_encoder import ViTEncoder

ATTENTION_LAYERS = r".*\.(q_proj|v_proj|query|value)"
"""What LoRA adapts: queries and values, by the names that `transformers` gives them."""


def add_lora(encoder: nn.Module, rank: int) -> None:
    """Put LoRA adapters of `rank` on the attention of a vision transformer; only they stay trainable.

    Raises:
        ImportError: peft is not installed.
        ValueError: not a vision transformer, or a bad rank.
    """
    if not isinstance(encoder, ViTEncoder):
        raise ValueError("lora_rank: expected a vision transformer; a convolutional encoder takes an adapter_rank")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"lora_rank: expected at least 1, got {rank}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('lora_rank needs the package peft: pip install "finpercep[lora]"') from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION_LAYERS), encoder)
