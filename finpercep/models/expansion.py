"""Progressive expansion: RM_k grows into RM_{k+1}, which at that moment answers as before.

New paths start where they change nothing, with a gradient that lets them grow: what new channels give enters the old
ones with zero weights, and a first map is flat, with the score head rescaled by what a flat map does in Eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from finpercep.models.attention import with_attention
from finpercep.models.conv_encoder import ConvEncoder
from finpercep.models.decoder import FPNDecoder
from finpercep.models.head import ScoreHead
from finpercep.models.lite_encoder import LiteEncoder
from finpercep.models.lora import add_lora
from finpercep.models.residual_adapters import add_residual_adapters
from finpercep.models.vit_encoder import ViTEncoder


class Growing(Protocol):
    """The parts of a model that can grow."""

    config: dict[str, Any]
    encoder: ConvEncoder | LiteEncoder | ViTEncoder
    decoder: FPNDecoder | None
    head: ScoreHead


Model = TypeVar("Model", bound=Growing)


def expand(
    build: Callable[[dict[str, Any], dict[str, Any] | None, dict[str, Any]], Model],
    model: Model,
    decoder: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    *,
    lora_rank: int = 0,
    adapter_rank: int = 0,
) -> Model:
    """See `RewardModel.expand`; `build` makes a model from the configurations of its parts."""
    adapters = {"lora_rank": (lora_rank, add_lora), "adapter_rank": (adapter_rank, add_residual_adapters)}
    if decoder is None and not lora_rank and not adapter_rank:
        raise ValueError("expand: expected a decoder, a lora_rank or an adapter_rank, got none")
    if model.decoder is not None and head:
        raise ValueError("head: expected None: only RM_0 can change it, as it gets its map")
    config = model.config
    for name, (rank, _) in adapters.items():
        if rank and config["encoder"].get(name):
            raise ValueError(f"{name}: expected 0, because the encoder has adapters already")
    decoder = config["decoder"] if decoder is None else _norm_of(config) | decoder
    grown = build(_with_attention(model), decoder, config["head"] | (head or {}))
    _like(grown, model)
    grown.encoder.load_state_dict(model.encoder.state_dict())
    grown.head.load_state_dict(model.head.state_dict())
    if model.decoder is None and grown.decoder is not None:
        _start_flat(grown)
    elif model.decoder is not None:
        assert grown.decoder is not None
        _widen(model.decoder, grown.decoder)
    for name, (rank, add) in adapters.items():
        if rank:
            grown.config["encoder"][name] = rank
            add(grown.encoder, rank)
    return grown


def _like(grown: Growing, model: Growing) -> None:
    """Move a new model to where the present one is, in its type."""
    parameter = next(model.head.parameters())  # a convolutional encoder is float32 in half precision too
    for part in (grown.encoder, grown.decoder, grown.head):
        if part is not None:
            part.to(parameter.device, parameter.dtype)


def _with_attention(model: Growing) -> dict[str, Any]:
    """The encoder's configuration, with the choice of attention that is never saved."""
    config = model.config["encoder"]
    name = getattr(model.encoder, "attn_implementation", None)
    return dict(config) if name is None else with_attention(config, name)


def _norm_of(config: dict[str, Any]) -> dict[str, Any]:
    """{"norm": …} of the present decoder, or of the encoder where there is none; empty where it is not set."""
    part = config["decoder"] or config["encoder"]
    return {"norm": part["norm"]} if "norm" in part else {}


@torch.no_grad()
def _start_flat(model: Growing) -> None:
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
