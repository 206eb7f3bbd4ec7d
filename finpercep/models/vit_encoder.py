"""Vision transformers of `transformers` as encoders: feature maps after chosen layers, at any image size."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finpercep.io.reasons import one_line
from finpercep.models.attention import DEFAULT_ATTENTION, prepare_attention
from finpercep.models.constants import KeepsConstants
from finpercep.models.precision import without_autocast

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
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

# Of a configuration: `transformers` builds a model of negative ones, and fails when it is called.
_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "patch_size")


class ViTEncoder(KeepsConstants):
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
        attn_implementation: one of `finpercep.models.attention.ATTENTION`.
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
        attn_implementation: str = DEFAULT_ATTENTION,
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
        self.keep_constant("mean", partial(_per_channel, mean))
        self.keep_constant("std", partial(_per_channel, std))
        self._keep_constants_of_transformers()

        self.channels = [int(tower.config.hidden_size)] * len(self.taps)
        # A simple feature pyramid: the two latest taps as they are, earlier ones twice and four times finer.
        self.upsampling = [2 ** min(2, max(0, len(self.taps) - 2 - i)) for i in range(len(self.taps))]
        self.stride = int(tower.config.patch_size)
        self.radius = 4 * self.stride  # attention reaches everywhere; this much is context for a tile

    def _keep_constants_of_transformers(self) -> None:
        """Positions as numbers (CLIP, SigLIP) and rotary frequencies (DINOv3), which are in no file either."""
        if "position_ids" in self.embeddings._non_persistent_buffers_set:
            self.keep_constant("embeddings.position_ids", partial(_positions, self.embeddings.position_ids.shape[-1]))
        if self.rotary is not None:
            for name in self.rotary._non_persistent_buffers_set:
                self.keep_constant(
                    f"rotary.{name}", partial(_rotary_constant, type(self.rotary), self.rotary.config, name)
                )

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = (side // self.stride for side in images.shape[-2:])
        return [tokens_to_map(tokens, (height, width)) for tokens in self.tokens(images)]

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Token sequences (B,n+h·w,C) at the taps; the last one normalized (see the class).

        First come the n that are no patches: CLIP's class token; none in "siglip_vision_model" and "ijepa".
        """
        if not torch.compiler.is_compiling() and len(images) == 0:  # which attention does not reshape
            return [found[:0] for found in self.tokens(images.new_zeros(1, *images.shape[1:]))]
        with without_autocast(images.device):
            pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        pixels = pixels.to(next(self.embeddings.parameters()).dtype)
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


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Token sequence (B,n+h·w,C) to the map (B,C,h,w) of its patches; the first n are class and register tokens."""
    height, width = grid
    return tokens[:, tokens.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))


def _check(config: dict[str, Any], taps: Sequence[int]) -> int:
    """Depth of the transformer in `config`."""
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f'config: expected a vision transformer\'s configuration with "model_type", got {config!r}')
    if config["model_type"] not in MODEL_TYPES:
        raise ValueError(
            f"encoder: expected one of the model types {', '.join(MODEL_TYPES)}, got {config['model_type']!r}"
        )
    for name in _SIZES:
        if not _is_count(config.get(name, 1)):
            raise ValueError(f"{name}: expected a positive integer, got {config[name]!r}")
    depth = config.get("num_hidden_layers", 12)
    if (
        not taps
        or not all(map(_is_count, taps))
        or list(taps) != sorted(set(taps))
        or not 1 <= taps[0] <= taps[-1] <= depth
    ):
        raise ValueError(f"taps: expected increasing layer numbers from 1 to {depth}, got {tuple(taps)}")
    return int(depth)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _build_tower(config: dict[str, Any], attn_implementation: str) -> Any:
    from transformers import AutoConfig, AutoModel

    prepare_attention(attn_implementation)
    options = dict(config)
    try:
        settings = AutoConfig.for_model(options.pop("model_type"), **options)
        model = AutoModel.from_config(settings, attn_implementation=attn_implementation)
    except Exception as error:  # transformers raises many types; only a missing package is another kind of trouble
        kind = ImportError if isinstance(error, ImportError) else ValueError
        raise kind(f"encoder: transformers cannot build {config['model_type']!r}: {one_line(error)}") from error
    return getattr(model, "vision_model", model)  # transformers 4 wraps CLIP's tower once more


def _part(tower: nn.Module, names: Sequence[str]) -> Any:
    """The first part of these names that there is."""
    for name in names:
        try:
            return tower.get_submodule(name)
        except AttributeError:
            continue
    raise ValueError(f"encoder: none of {', '.join(names)} in {type(tower).__name__} of this transformers")


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(tuple(values), dtype=torch.float32).view(3, 1, 1)


def _positions(count: int) -> Tensor:
    return torch.arange(count)[None]


def _rotary_constant(kind: type[nn.Module], config: Any, name: str) -> Tensor:
    return kind(config)._buffers[name]  # type: ignore[return-value]


def _accepted(module: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    names = inspect.signature(module.forward).parameters
    return {name: value for name, value in options.items() if name in names}
