"""How the attention of a vision transformer is computed: a choice of the machine, not of the model.

It is made where a model is built or loaded, and neither saved nor part of the fingerprint.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

ATTENTION = ("sdpa", "flash_attention_2", "xformers", "eager")
"""sdpa: torch's own; flash_attention_2 and xformers need the packages flash-attn and xformers; eager: plain."""

DEFAULT_ATTENTION = ATTENTION[0]
_KEY = "attn_implementation"


def with_attention(encoder: dict[str, Any], name: str) -> dict[str, Any]:
    """An encoder's configuration with this choice in it; that of another one than a vision transformer as it is."""
    return {**encoder, _KEY: name} if encoder.get("type") == "vit" else encoder


def without_attention(encoder: dict[str, Any]) -> dict[str, Any]:
    """An encoder's configuration as it is saved."""
    return {key: value for key, value in encoder.items() if key != _KEY}


def prepare_attention(name: str) -> None:
    """Check the name, and make "xformers" known to `transformers`.

    Raises:
        ValueError: not one of `ATTENTION`.
        ImportError: xformers is asked for and not installed.
    """
    if name not in ATTENTION:
        raise ValueError(f"attn_implementation: expected one of {', '.join(ATTENTION)}, got {name!r}")
    if name == "xformers":
        _register_xformers()


def _register_xformers() -> None:
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ImportError(
            'attn_implementation: "xformers" needs the package xformers: pip install "finpercep[xformers]"'
        ) from error
    from transformers import AttentionInterface

    def xformers_attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """[B, heads, N, D] -> [B, N, heads, D], the layout that xformers takes as well."""
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return memory_efficient_attention(q, k, v, attn_bias=attention_mask, p=dropout, scale=scaling), None

    AttentionInterface.register("xformers", xformers_attention)
