"""Gradient checkpointing: layers of a vision transformer that are computed again instead of remembered."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from finpercep.models.vit_encoder import ViTEncoder


def checkpoint_layers(encoder: nn.Module) -> None:
    """Let the layers of a vision transformer keep only their inputs in training, and compute the rest once more.

    Raises:
        ValueError: another encoder.
    """
    if not isinstance(encoder, ViTEncoder):
        raise ValueError(f"checkpointing: expected a vision transformer as encoder, got {type(encoder).__name__}")
    for layer in encoder.layers:
        layer.__class__ = _checkpointed(type(layer))  # type: ignore[arg-type]


@cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of layers `kind`, checkpointed in training; names of weights and what is saved stay."""

    class Checkpointed(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **options: Any) -> Any:
            if not (self.training and torch.is_grad_enabled()):
                return super().forward(*args, **options)
            return checkpoint(super().forward, *args, use_reentrant=False, **options)

    return Checkpointed
