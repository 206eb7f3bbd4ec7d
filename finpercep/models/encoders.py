"""Encoders by configuration, and what the rest of a reward model needs to know of one."""

from __future__ import annotations

from typing import Any

from torch import nn

from finpercep.models.conv_encoder import ConvEncoder
from finpercep.models.lite_encoder import LiteEncoder
from finpercep.models.lora import add_lora
from finpercep.models.residual_adapters import ResidualAdapter, add_residual_adapters
from finpercep.models.vit_encoder import ViTEncoder

ENCODERS: dict[str, type[ConvEncoder | LiteEncoder | ViTEncoder]] = {
    "conv": ConvEncoder,
    "efficientnet-lite0+energy": LiteEncoder,
    "vit": ViTEncoder,
}


def build_encoder(config: dict[str, Any]) -> ConvEncoder | LiteEncoder | ViTEncoder:
    """An encoder from its configuration: an object with `channels`, `upsampling`, `stride`, `radius`.

    Args:
        config: {"type": "conv", …arguments of ConvEncoder}, {"type": "efficientnet-lite0+energy"} (`LiteEncoder`) or
            {"type": "vit", …arguments of ViTEncoder}. "lora_rank" in that of a vision transformer, "adapter_rank" in
            that of the others, adds adapters.

    Raises:
        ValueError: another type, or adapters that the encoder cannot have.
    """
    options = dict(config)
    kind = options.pop("type", None)
    lora_rank, adapter_rank = options.pop("lora_rank", 0), options.pop("adapter_rank", 0)
    if not isinstance(kind, str) or kind not in ENCODERS:
        expected = " or ".join(f'"{name}"' for name in ENCODERS)
        raise ValueError(f"encoder: expected type {expected}, got {kind!r}")
    encoder = ENCODERS[kind](**options)
    if lora_rank:
        add_lora(encoder, lora_rank)
    if adapter_rank:
        add_residual_adapters(encoder, adapter_rank)
    return encoder


def unfreeze(encoder: nn.Module) -> None:
    """Let gradients reach what is trained of an encoder: its adapters alone, where it has any, or else all of it."""
    adapters = [module for module in encoder.modules() if isinstance(module, ResidualAdapter)]
    own = {id(parameter) for adapter in adapters for parameter in adapter.parameters()}
    own |= {id(parameter) for name, parameter in encoder.named_parameters() if "lora_" in name}
    for parameter in encoder.parameters():
        parameter.requires_grad_(not own or id(parameter) in own)
