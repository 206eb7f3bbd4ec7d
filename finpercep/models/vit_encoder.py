"""Vision transformers of `transformers` as encoders: feature maps after chosen layers, at any image size."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ATTENTION = ("sdpa", "flash_attention_2", "xformers", "eager")
MODEL_TYPES = (
    "clip_vision_model",
    "siglip_vision_model",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "vit",
    "deit",
    "ijepa",
)
"""Plain vision transformers: one resolution, tokens row by row after those that are no patches."""
# Where `transformers` keeps the layers and the final norm: by model, and by its own version.
_LAYERS = ("encoder.layers", "encoder.layer", "model.layer", "layers", "layer")
_FINAL_NORMS = ("post_layernorm", "layernorm", "norm")


class ViTEncoder(nn.Module):
    """Feature maps of a plain vision transformer after the given layers; one resolution, so one stride.

    Only what the taps need is built and run: layers after the last tap do not exist. The last tap, where it is the
    transformer's last layer, goes through the transformer's own final norm: a pre-norm transformer never lets
    anyone read its residual stream without it, and unnormalized it has channels tens of times larger than the rest,
    which Eq. 7's mean and the linear layer behind it would see first. Earlier taps are the residual stream as
    `transformers` gives it (`hidden_states`): the decoder's lateral convolutions scale them.

    Args:
        config: the transformer's configuration as `transformers` writes it, with its "model_type", one of
            `MODEL_TYPES`.
        taps: layers, counted from 1, increasing. CLIP ViT-L/14 in the paper: 6, 12, 18, 24.
        attn_implementation: "sdpa", "flash_attention_2" (needs flash-attn), "xformers" (needs xformers), "eager".
        mean, std: normalization of RGB in [0, 1]; CLIP's by default.

    Shape: images (B,3,H,W) in [0, 1], sides multiples of `stride` -> list of (B,C,H/stride,W/stride), early to late.
    Position embeddings are interpolated to the grid (bicubic, as `transformers` does); DINOv3's follow from it.

    Inside a layer, tensors have the names that `transformers` gives them, and so have saved weights. CLIP's, SigLIP's
    and DINOv3's are the same in its versions 4.56 and 5.24; those of "dinov2", "dinov2_with_registers", "vit", "deit"
    and "ijepa" are not: such a model loads only in a version with the names that it was saved with.

    Raises:
        ValueError: another model type, a configuration that `transformers` cannot build, or bad taps.
        ImportError: an attention implementation whose package is missing.
    """

    def __init__(
        self,
        config: dict[str, Any],
        taps: Sequence[int],
        *,
        attn_implementation: str = "sdpa",
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        depth = _check(config, taps)
        self.taps = tuple(taps)
        self.attn_implementation = attn_implementation
        tower = _build_tower({**config, "num_hidden_layers": self.taps[-1]}, attn_implementation)
        self.embeddings = tower.embeddings
        self.pre_norm = getattr(tower, "pre_layrnorm", nn.Identity())  # CLIP's; the spelling is transformers'
        self.rotary = getattr(tower, "rope_embeddings", None)  # DINOv3's
        if self.rotary is not None:  # in training it would move positions at random, from no seed of ours
            for change in ("shift", "jitter", "rescale"):
                setattr(self.rotary.config, f"pos_embed_{change}", None)
        self.layers: nn.ModuleList = _part(tower, _LAYERS)
        self.post_norm = _part(tower, _FINAL_NORMS) if self.taps[-1] == depth else nn.Identity()
        # Some interpolate on request, DINOv2 always does; older transformers want the unused masks by position.
        self._embedding_options = _accepted(self.embeddings, {"interpolate_pos_encoding": True})
        self._layer_options = _accepted(self.layers[0], dict.fromkeys(("attention_mask", "causal_attention_mask")))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

        self.channels = [int(tower.config.hidden_size)] * len(self.taps)
        # A simple feature pyramid: the two latest taps as they are, earlier ones twice and four times finer.
        self.upsampling = [2 ** min(2, max(0, len(self.taps) - 2 - i)) for i in range(len(self.taps))]
        self.stride = int(tower.config.patch_size)
        self.radius = 4 * self.stride  # attention reaches everywhere; this much is context for a tile

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = (side // self.stride for side in images.shape[-2:])
        maps = []
        for tokens in self.tokens(images):
            patches = tokens[:, tokens.shape[1] - height * width :]  # without the class and register tokens
            maps.append(patches.transpose(1, 2).unflatten(2, (height, width)))
        return maps

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Token sequences (B,n+h·w,C) at the taps; the last one normalized (see the class).

        First come the n that are no patches: CLIP's class token; none in "siglip_vision_model" and "ijepa".
        """
        pixels = (images - self.mean) / self.std
        x = self.pre_norm(self.embeddings(pixels, **self._embedding_options))
        options = self._layer_options
        if self.rotary is not None:
            options = {**options, "position_embeddings": self.rotary(pixels)}
        found = []
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, **options)
            x = x[0] if isinstance(x, tuple) else x  # older transformers return (hidden states, attentions)
            if number in self.taps:
                found.append(x)
        found[-1] = self.post_norm(found[-1])
        return found


def _check(config: dict[str, Any], taps: Sequence[int]) -> int:
    """Depth of the transformer in `config`."""
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f'config: expected a vision transformer\'s configuration with "model_type", got {config!r}')
    if config["model_type"] not in MODEL_TYPES:
        raise ValueError(
            f"encoder: expected one of the model types {', '.join(MODEL_TYPES)}, got {config['model_type']!r}"
        )
    depth = config.get("num_hidden_layers", 12)
    if not taps or list(taps) != sorted(set(taps)) or not 1 <= taps[0] <= taps[-1] <= depth:
        raise ValueError(f"taps: expected increasing layer numbers from 1 to {depth}, got {tuple(taps)}")
    return int(depth)


def _build_tower(config: dict[str, Any], attn_implementation: str) -> Any:
    from transformers import AutoConfig, AutoModel

    if attn_implementation not in ATTENTION:
        raise ValueError(f"attn_implementation: expected one of {', '.join(ATTENTION)}, got {attn_implementation!r}")
    if attn_implementation == "xformers":
        register_xformers()
    options = dict(config)
    try:
        settings = AutoConfig.for_model(options.pop("model_type"), **options)
        model = AutoModel.from_config(settings, attn_implementation=attn_implementation)
    except Exception as error:  # transformers raises many types; only a missing package is another kind of trouble
        kind = ImportError if isinstance(error, ImportError) else ValueError
        reason = " ".join(str(error).split())[:300]
        raise kind(f"encoder: transformers cannot build {config['model_type']!r}: {reason}") from error
    return getattr(model, "vision_model", model)  # transformers 4 wraps CLIP's tower once more


def _part(tower: nn.Module, names: Sequence[str]) -> Any:
    """The first part of these names that there is."""
    for name in names:
        try:
            return tower.get_submodule(name)
        except AttributeError:
            continue
    raise ValueError(f"encoder: none of {', '.join(names)} in {type(tower).__name__} of this transformers")


def _accepted(module: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    names = inspect.signature(module.forward).parameters
    return {name: value for name, value in options.items() if name in names}


def register_xformers() -> None:
    """Make "xformers" an attention implementation of `transformers`.

    Raises:
        ImportError: xformers is not installed.
    """
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
