"""Progressive expansion: RM_k grows into RM_{k+1}, which at that moment answers as before.

New paths start where they change nothing, with a gradient that lets them grow: what new channels give enters the old
ones with zero weights, and a first map is flat, with the score head rescaled by what a flat map does in Eq. 7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finpercep.models.decoder import FPNDecoder

if TYPE_CHECKING:
    from finpercep.models.reward_model import RewardModel

ATTENTION_LAYERS = r".*\.(q_proj|v_proj|query|value)"
"""What LoRA adapts: queries and values, by the names that `transformers` gives them."""


def expand(
    model: RewardModel,
    decoder: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    *,
    lora_rank: int = 0,
) -> RewardModel:
    """See `RewardModel.expand`."""
    if decoder is None and not lora_rank:
        raise ValueError("expand: expected a decoder or a lora_rank, got neither")
    if model.decoder is not None and head:
        raise ValueError("head: expected None: only RM_0 can change it, as it gets its map")
    config = model.config
    if lora_rank and config["encoder"].get("lora_rank"):
        raise ValueError("lora_rank: expected 0, because the encoder has adapters already")
    decoder = config["decoder"] if decoder is None else _norm_of(config) | decoder
    grown = type(model)(_with_attention(model), decoder, config["head"] | (head or {}))
    grown.to(next(model.parameters()).device, next(model.parameters()).dtype)
    grown.encoder.load_state_dict(model.encoder.state_dict())
    grown.head.load_state_dict(model.head.state_dict())
    if model.decoder is None and grown.decoder is not None:
        _start_flat(grown)
    elif model.decoder is not None:
        assert grown.decoder is not None
        _widen(model.decoder, grown.decoder)
    if lora_rank:
        grown.config["encoder"]["lora_rank"] = lora_rank
        add_lora(grown.encoder, lora_rank)
    return grown.train(model.training)


def add_lora(encoder: nn.Module, rank: int) -> None:
    """Put LoRA adapters of `rank` on the attention of a vision transformer; only they stay trainable.

    Raises:
        ImportError: peft is not installed.
        ValueError: not a vision transformer, or a bad rank.
    """
    from finpercep.models.vit_encoder import ViTEncoder

    if not isinstance(encoder, ViTEncoder):
        raise ValueError("lora_rank: expected a vision transformer; a convolutional encoder is trained whole")
    if rank < 1:
        raise ValueError(f"lora_rank: expected at least 1, got {rank}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('lora_rank needs the package peft: pip install "finpercep[lora]"') from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION_LAYERS), encoder)


def _with_attention(model: RewardModel) -> dict[str, Any]:
    """The encoder's configuration, with the choice of attention that is never saved."""
    config = dict(model.config["encoder"])
    if config["type"] == "vit":
        config["attn_implementation"] = model.encoder.attn_implementation
    return config


def _norm_of(config: dict[str, Any]) -> dict[str, Any]:
    """{"norm": …} of the present decoder, or of the encoder where there is none; empty where it is not set."""
    part = config["decoder"] or config["encoder"]
    return {"norm": part["norm"]} if "norm" in part else {}


@torch.no_grad()
def _start_flat(model: RewardModel) -> None:
    """Make a new decoder's map one constant, and let the head undo what that does to Eq. 7."""
    assert model.decoder is not None
    final, first = model.decoder.conv2, model.head.mlp[0]
    assert final.bias is not None
    assert isinstance(first, nn.Linear)
    final.weight.zero_()
    level = final.bias.sigmoid().view(1, 1, 1, 1)
    first.weight.div_(model.head.pool(torch.ones_like(level), level))  # Eq. 7 of a feature of ones: its gate


@torch.no_grad()
def _widen(old: FPNDecoder, new: FPNDecoder) -> None:
    """Copy a decoder into the first channels of a wider one; what the others give does not reach those, nor the map."""
    width, wider = old.conv2.in_channels, new.conv2.in_channels
    if wider < width:
        raise ValueError(f"decoder: expected at least the present width of {width}, got {wider}")
    old_state, new_state = old.state_dict(), new.state_dict()
    if {name: t.dim() for name, t in old_state.items()} != {name: t.dim() for name, t in new_state.items()}:
        raise ValueError("decoder: expected no norm, or the one of the present decoder")
    for name, target in new_state.items():  # these are the parameters themselves
        source = old_state[name]
        corner = tuple(slice(size) for size in source.shape)
        if target.dim() == 4:
            if name.startswith("upsample."):  # transposed convolutions: (in, out, …) instead of (out, in, …)
                target[:, : source.shape[1]] = 0
            else:
                target[: source.shape[0]] = 0
        target[corner] = source
