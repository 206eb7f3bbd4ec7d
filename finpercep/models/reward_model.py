"""`RewardModel`: one encoder pass gives a score, a map of faults, and gradients to the pixels of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from finpercep.models import expansion, scoring
from finpercep.models.checkpoint import fingerprint, load_checkpoint, load_weights, resolve, share_weights
from finpercep.models.conv_encoder import ConvEncoder
from finpercep.models.decoder import FPNDecoder
from finpercep.models.head import ScoreHead
from finpercep.models.norms import fold_norms
from finpercep.models.presets import PRESETS, build_preset

if TYPE_CHECKING:
    from finpercep.models.vit_encoder import ViTEncoder

PREPROCESSING = "rgb01-replicate-v1"
"""Names what happens between pixels and encoder; part of the fingerprint."""


class RewardOutput(NamedTuple):
    """`score` (B,) in [0, 1], higher = better; `map` (B,1,H,W) in [0, 1], 1 = degraded, at input resolution.

    From `RewardModel.score` of a list, `map` is a list of (1,H,W), one for each image.
    """

    score: Tensor
    map: Tensor | list[Tensor]


# What `save_pretrained` writes as README.md, where there is none; the front matter is the hub's.
MODEL_CARD = """---
{{ card_data }}
---

A fine-grained perceptual reward model: a score in [0, 1] (higher is better) and a map of faults at the image's own
resolution (1 = degraded). `config.json` describes it.

```python
import finpercep

model = finpercep.RewardModel.from_pretrained("this folder, or its hub id")
out = model.score(["photo.png"])
out.score, out.map
```

To be added by whoever trained it: the data, the command, the figures of `finpercep evaluate-reward`, the limits.
"""


class RewardModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="finpercep",
    tags=["image-quality-assessment"],
    model_card_template=MODEL_CARD,
):
    """Fine-grained perceptual reward model: encoder, FPN decoder, Eq. 7 score head.

    Args:
        encoder: {"type": "conv", …arguments of ConvEncoder} or {"type": "vit", …arguments of ViTEncoder}.
        decoder: arguments of FPNDecoder, e.g. {"width": "light"}; None is RM_0, the base model without a map (its
            map is all zeros).
        head: arguments of ScoreHead.
    """

    lower_better = False

    def __init__(
        self,
        encoder: dict[str, Any],
        decoder: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # How attention is computed is a choice of the machine, not of the model: neither saved nor in the fingerprint.
        saved = {key: value for key, value in encoder.items() if key != "attn_implementation"}
        self.config: dict[str, Any] = {
            "encoder": saved,
            "decoder": decoder and {**decoder},
            "head": head or {},
        }
        self.encoder = build_encoder(encoder)
        channels = self.encoder.channels
        self.decoder = None if decoder is None else FPNDecoder(channels, self.encoder.upsampling, **decoder)
        self.head = ScoreHead(channels[-1], **(head or {}))

    def forward(self, images: Tensor) -> RewardOutput:
        """Score and map of images (B,3,H,W), float in [0, 1]; differentiable, no host synchronization.

        Values are not checked here (that would stall a GPU): `score` does. The map has the model's type (autocast's,
        under autocast); the score of half-precision models is float32.

        Raises:
            ValueError: wrong rank or channels, or another device than the model's.
            TypeError: not a tensor, not a floating-point tensor, or (without autocast) another dtype than the model's.
        """
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images: expected a tensor (B,3,H,W), got {type(images).__name__}; "
                "use score() for paths, PIL images and arrays"
            )
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected (B,3,H,W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise TypeError(f"images: expected float in [0, 1], got {images.dtype}; use score() for uint8 images")
        weights = next(self.parameters())
        if images.device != weights.device:
            raise ValueError(f"images: expected on {weights.device} like the model, got {images.device}")
        if images.dtype != weights.dtype and not torch.is_autocast_enabled(images.device.type):
            raise TypeError(f"images: expected {weights.dtype} like the model, got {images.dtype}")
        pooled, degradation = self.pool_and_map(pad_to_multiple(images, self.encoder.stride))
        height, width = images.shape[-2:]
        return RewardOutput(self.head.regress(pooled), degradation[..., :height, :width])

    def pool_and_map(self, images: Tensor, core: tuple[slice, slice] | None = None) -> tuple[Tensor, Tensor]:
        """Eq. 7's pooled feature (B,C) and the map (B,1,H,W) of images whose sides are multiples of the stride.

        With `core` (rows, columns; multiples of the stride), both are of that part only: a tile without its halo.
        """
        features = self.encoder(images)
        last, size = features[-1], (images.shape[-2], images.shape[-1])
        degradation = None if self.decoder is None else self.decoder(features, size)
        if core is not None:
            stride = self.encoder.stride
            rows, columns = (slice(s.start // stride, s.stop // stride) for s in core)
            last = last[..., rows, columns]
            degradation = None if degradation is None else degradation[..., core[0], core[1]]
        pooled = self.head.pool(last, degradation)
        if degradation is None:
            degradation = images.new_zeros(
                len(images), 1, last.shape[-2] * self.encoder.stride, last.shape[-1] * self.encoder.stride
            )
        return pooled, degradation

    @torch.no_grad()
    def score(
        self, images: Tensor | Sequence[Any] | Any, *, batch_size: int = 8, tile: int | None = None
    ) -> RewardOutput:
        """Score images of any kind without gradients, in evaluation mode (the model's own is restored afterwards).

        Args:
            images: a batch (B,3,H,W) or (B,H,W,3), uint8 or float in [0, 1], tensor or numpy (numpy with 1 to 4
                channels); or one image; or a list whose members may differ in size: paths, PIL images, arrays or
                tensors. A list is held in memory decoded, and so are all maps.
            batch_size: images of one size that go through the model together; fewer where they have more pixels than
                one tile.
            tile: images with a side longer than this go through in tiles; None is 1536. The result of a
                convolutional encoder does not depend on it; memory beyond the images themselves and their maps does.

        Returns:
            RewardOutput in float32 on the CPU; `map` is (B,1,H,W) for a batch or one image, a list of (1,H,W) for a
            list.

        Raises:
            ImageError: an image that cannot be read or used; the message names it.
        """
        return scoring.score(self, images, batch_size=batch_size, tile=tile)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify weights, configuration and preprocessing."""
        return fingerprint([PREPROCESSING, self.config], self.state_dict())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: str | Path, *, attn_implementation: str = "sdpa", fold: bool = True, **options: Any
    ) -> RewardModel:
        """Load "finpercep-tiny", a folder with config.json and model.safetensors, or a hub id ("owner/name").

        The name of a preset gives it around its own CLIP checkpoint from the hub, untrained: see `from_preset`.

        Args:
            attn_implementation: of a vision transformer, see `ViTEncoder`; it is chosen here and not saved.
            fold: fold the normalizations of a model that is still in training; False loads it to train on.
            **options: for downloads: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            TypeError: another option.
            ValueError: unknown name (the nearest known one is suggested), or files that do not fit; names the file.
        """
        if name_or_path in PRESETS:
            return build_preset(str(name_or_path), attn_implementation=attn_implementation, **options)
        config, weights = load_checkpoint(resolve(name_or_path, **options))
        if config["encoder"].get("type") == "vit":
            config["encoder"]["attn_implementation"] = attn_implementation
        try:
            model = cls(**config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name_or_path}: config.json does not describe a reward model: {error}") from error
        load_weights(model, weights, name_or_path)
        return model.fold_norms() if fold else model.eval()

    def fold_norms(self) -> RewardModel:
        """Put the model in evaluation and fold its normalizations: same output, nothing that depends on a batch."""
        fold_norms(self)
        for part in (self.config["encoder"], self.config["decoder"] or {}):
            part.pop("norm", None)
        return self.eval()

    @classmethod
    def from_preset(cls, name: str, **options: Any) -> RewardModel:
        """A model around a CLIP checkpoint, with an **untrained** decoder and head: see `presets.build_preset`."""
        return build_preset(name, **options)

    def expand(
        self,
        decoder: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        *,
        lora_rank: int = 0,
    ) -> RewardModel:
        """RM_{k+1}: a larger model that gives the same scores (and map, if there is one) until it is trained on.

        The result is a new model, all of which requires gradients (but see `lora_rank`). To train it, load the model
        with `from_pretrained(folder, fold=False)`, grow it, save it, and give it to `finpercep train-reward --init`.

        Args:
            decoder: arguments of FPNDecoder, e.g. {"width": "full"}. RM_0 gets its first one, whose map starts flat;
                a present one is widened. `norm` is that of the present model. None leaves the decoder.
            head: arguments of ScoreHead to change as RM_0 gets its map, e.g. {"gate": "quality"}.
            lora_rank: put LoRA adapters of this rank on the encoder's attention (needs the extra `lora`); from then on
                they alone are trained in it. 0 puts none.

        Raises:
            ValueError: nothing given, a narrower decoder, or adapters on an encoder that has them or cannot.
            ImportError: adapters without peft.
        """
        return expansion.expand(self, decoder, head, lora_rank=lora_rank)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, model.safetensors and, where there is none, the beginning of a model card as README.md.

        The options are those of `huggingface_hub`'s mixin, but that `config` is always the model's own.
        """
        pushed = super().save_pretrained(save_directory, **{**options, "config": self.config})
        share_weights(save_directory)
        return pushed


def build_encoder(config: dict[str, Any]) -> ConvEncoder | ViTEncoder:
    """An encoder from its configuration: an object with `channels`, `upsampling`, `stride`, `radius`.

    "lora_rank" in the configuration of a vision transformer adds adapters.
    """
    options = dict(config)
    kind, lora_rank = options.pop("type", None), options.pop("lora_rank", 0)
    if kind == "conv":
        return ConvEncoder(**options)
    if kind == "vit":
        from finpercep.models.vit_encoder import ViTEncoder  # imports transformers

        encoder = ViTEncoder(**options)
        if lora_rank:
            expansion.add_lora(encoder, lora_rank)
        return encoder
    raise ValueError(f'encoder: expected type "conv" or "vit", got {kind!r}')


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (B,3,H,W) until both sides are multiples of `multiple`."""
    # Not -side % multiple: with sizes as symbols, torch.compile (2.15) does not know Python's modulo of a negative.
    bottom, right = ((multiple - side % multiple) % multiple for side in images.shape[-2:])
    # Not F.pad(mode="replicate"): the strides of its gradient are not those that torch.compile (2.15) expects.
    if bottom:
        images = torch.cat([images, images[..., -1:, :].expand(-1, -1, bottom, -1)], -2)
    if right:
        images = torch.cat([images, images[..., -1:].expand(-1, -1, -1, right)], -1)
    return images
