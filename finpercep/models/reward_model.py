"""`RewardModel`: one encoder pass gives a score, a map of faults, and gradients to the pixels of both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from finpercep.io.fingerprints import weights_fingerprint
from finpercep.models import expansion, scoring
from finpercep.models.attention import DEFAULT_ATTENTION, with_attention, without_attention
from finpercep.models.checkpoint import load_model, resolve, share_weights
from finpercep.models.decoder import Float32Decoder, FPNDecoder
from finpercep.models.encoders import build_encoder
from finpercep.models.evaluation_view import evaluation_view
from finpercep.models.from_preset import build_preset
from finpercep.models.head import ScoreHead
from finpercep.models.inputs import PREPROCESSING, STORED_PREPROCESSING, as_stored, check_images, known_preprocessing
from finpercep.models.model_card import MODEL_CARD
from finpercep.models.norms import fold_norms
from finpercep.models.output import RewardOutput
from finpercep.models.precision import KeepsFloat32
from finpercep.models.presets import PRESETS
from finpercep.models.tiles import pad_to_multiple


class RewardModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="finpercep",
    tags=["image-quality-assessment"],
    model_card_template=MODEL_CARD,
):
    """Fine-grained perceptual reward model: encoder, FPN decoder, Eq. 7 score head.

    Args:
        encoder: {"type": "conv", …arguments of ConvEncoder}, {"type": "efficientnet-lite0+energy"}, or {"type": "vit",
            …arguments of ViTEncoder}.
        decoder: arguments of FPNDecoder, e.g. {"width": "light"}; None is RM_0, the base model without a map.
        head: arguments of ScoreHead.
        preprocessing: "rgb01-replicate-v1" takes floats as they are; "rgb8-replicate-v2" scores what an 8-bit file of
            them would hold, with a straight-through gradient. None is the first, which files without the key have.

    Raises:
        ValueError: another preprocessing, or a part that cannot be built.
    """

    lower_better = False

    @torch.inference_mode(False)  # made under inference mode, a model could never be trained
    def __init__(
        self,
        encoder: dict[str, Any],
        decoder: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        preprocessing: str | None = None,
    ) -> None:
        super().__init__()
        self.preprocessing = known_preprocessing(preprocessing)
        self.config: dict[str, Any] = {
            "encoder": without_attention(encoder),
            "decoder": decoder and {**decoder},
            "head": head or {},
        }
        if self.preprocessing != PREPROCESSING:
            self.config["preprocessing"] = self.preprocessing
        self.encoder = build_encoder(encoder)
        channels = self.encoder.channels
        kind = Float32Decoder if isinstance(self.encoder, KeepsFloat32) else FPNDecoder
        self.decoder = None if decoder is None else kind(channels, self.encoder.upsampling, **decoder)
        self.head = ScoreHead(channels[-1], **(head or {}))

    @property
    def has_map(self) -> bool:
        """Whether the model answers a map; RM_0 does not."""
        return self.decoder is not None

    def forward(self, images: Tensor) -> RewardOutput:
        """Score and map of images (B,3,H,W), float in [0, 1]; differentiable, no host synchronization.

        Values are not checked here (that would stall a GPU): `score` does. The map has the model's type (behind a
        transformer autocast's, under autocast); the score of half-precision models is float32. Convolutional encoders
        and their decoders compute in float32, with weights in float32, in such models and under autocast too:
        gradients to the pixels would not survive bfloat16.

        Raises:
            ValueError: wrong rank or channels, or another device than the model's.
            TypeError: not a tensor, not a floating-point tensor, or (without autocast) another dtype than the model's
                and, of a model in half precision, than float32.
        """
        check_images(images, next(self.head.parameters()))
        pooled, degradation = self.pool_and_map(pad_to_multiple(images, self.encoder.stride))
        if degradation is None:
            return RewardOutput(self.head.regress(pooled), None)
        height, width = images.shape[-2:]
        return RewardOutput(self.head.regress(pooled), degradation[..., :height, :width])

    def pool_and_map(self, images: Tensor, core: tuple[slice, slice] | None = None) -> tuple[Tensor, Tensor | None]:
        """Eq. 7's pooled feature (B,C) and the map (B,1,H,W) of images whose sides are multiples of the stride.

        With `core` (rows, columns; multiples of the stride), both are of that part only: a tile without its halo. The
        map is None of a model without one.
        """
        if self.preprocessing == STORED_PREPROCESSING:
            images = as_stored(images)
        features = self.encoder(images)
        last, size = features[-1], (images.shape[-2], images.shape[-1])
        degradation = None if self.decoder is None else self.decoder(features, size)
        if core is not None:
            stride = self.encoder.stride
            rows, columns = (slice(s.start // stride, s.stop // stride) for s in core)
            last = last[..., rows, columns]
            degradation = None if degradation is None else degradation[..., core[0], core[1]]
        pooled = self.head.pool(last, degradation)  # of the map before it is rounded
        own = next(self.head.parameters()).dtype
        if degradation is not None and own.itemsize < degradation.dtype.itemsize:
            degradation = degradation.to(own)
        return pooled, degradation

    @torch.no_grad()
    def score(
        self, images: Tensor | Sequence[Any] | Any, *, batch_size: int = 8, tile: int | None = None
    ) -> RewardOutput:
        """Score images of any kind without gradients, in evaluation mode; the model's own mode stays as it is.

        Nothing of the model changes, so several threads may score with it while another one trains it.

        Args:
            images: a batch (B,3,H,W) or (B,H,W,3), uint8 or float in [0, 1], tensor or numpy (numpy with 1 to 4
                channels; where both layouts fit, tensors are (B,3,H,W) and arrays (B,H,W,C)); or one image; or a list
                whose members may differ in size: paths, PIL images, arrays or tensors. A list is held in memory
                decoded, and so are all maps.
            batch_size: images of one size that go through the model together; fewer where they have more pixels than
                one tile.
            tile: images with a side longer than this go through in tiles; None is 1536. The result of a
                convolutional encoder does not depend on it; memory beyond the images themselves and their maps does.

        Returns:
            RewardOutput in float32 on the CPU; `map` is (B,1,H,W) for a batch or one image, a list of (1,H,W) for a
            list, and None of a model without one.

        Raises:
            ImageError: an image that cannot be read or used; the message names it.
        """
        return scoring.score(evaluation_view(self), images, batch_size=batch_size, tile=tile)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify weights, configuration and preprocessing."""
        return weights_fingerprint([self.preprocessing, self.config], self.state_dict())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name_or_path: str | Path,
        *,
        dtype: torch.dtype | None = torch.float32,
        attn_implementation: str = DEFAULT_ATTENTION,
        fold: bool = True,
        **options: Any,
    ) -> RewardModel:
        """Load "finpercep-tiny", a folder with config.json and model.safetensors, or a hub id ("owner/name").

        The name of a preset gives it around its own CLIP checkpoint from the hub, untrained: see `from_preset`. Under
        `torch.device(…)` the model is there, but under "meta" on the CPU: a loaded model always has its weights.

        Args:
            dtype: floating-point type of the model, e.g. torch.bfloat16; None is that of the file. Convolutional
                encoders and their decoders are at least float32.
            attn_implementation: of a vision transformer, see `ViTEncoder`; it is chosen here and not saved.
            fold: fold the normalizations of a model that is still in training; False loads it to train on.
            **options: for downloads: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            TypeError: another option.
            ValueError: unknown name (the nearest known one is suggested), or files that do not fit; names the file.
        """
        if (name := os.fspath(name_or_path)) in PRESETS:
            preset = cls.from_preset(name, attn_implementation=attn_implementation, **options)
            return preset if dtype is None else preset.to(dtype)
        model = load_model(
            cls,
            resolve(name_or_path, **options),
            ("encoder", "decoder", "head", "preprocessing"),
            kind="a reward model",
            shown=name_or_path,
            dtype=dtype,
            change=lambda encoder: with_attention(encoder, attn_implementation),
        )
        return model.fold_norms() if fold else model

    @torch.inference_mode(False)
    def fold_norms(self) -> RewardModel:
        """Put the model in evaluation and fold its normalizations: same output, nothing that depends on a batch."""
        fold_norms(self)
        for part in (self.config["encoder"], self.config["decoder"] or {}):
            part.pop("norm", None)
        return self.eval()

    @classmethod
    @torch.inference_mode(False)
    def from_preset(
        cls,
        name: str,
        *,
        clip: str | Path | None = None,
        decoder: str | None = "light",
        seed: int = 0,
        attn_implementation: str = DEFAULT_ATTENTION,
        **hub_options: Any,
    ) -> RewardModel:
        """A model with CLIP's vision tower; decoder and head are new: **untrained**, and a warning says so.

        It scores what an 8-bit file would hold (preprocessing "rgb8-replicate-v2").

        Args:
            name: one of `finpercep.models.presets.PRESETS`.
            clip: folder with config.json and model.safetensors of a CLIPModel or CLIPVisionModel, or a hub id. None is
                the preset's own checkpoint on the hub.
            decoder: width "light" or "full", or None for a model without a map.
            seed: of the new parts.
            attn_implementation: see `ViTEncoder`.
            **hub_options: for the download, see `from_pretrained`.

        Raises:
            TypeError: another option.
            ValueError: unknown name, or a checkpoint that is missing or of another size.
        """
        build = partial(cls, preprocessing=STORED_PREPROCESSING)
        return build_preset(
            build, name, clip=clip, decoder=decoder, seed=seed, attn_implementation=attn_implementation, **hub_options
        )

    @torch.inference_mode(False)
    def expand(
        self,
        decoder: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        *,
        lora_rank: int = 0,
        adapter_rank: int = 0,
    ) -> RewardModel:
        """RM_{k+1}: a larger model that gives the same scores (and map, if there is one) until it is trained on.

        The result is a new model, all of which requires gradients (but see the adapters). To train it, load the model
        with `from_pretrained(folder, fold=False)`, grow it, save it, and give it to `finpercep train-reward --init`.

        Args:
            decoder: arguments of FPNDecoder, e.g. {"width": "full"}. RM_0 gets its first one, whose map starts flat;
                a present one is widened. `norm` is that of the present model. None leaves the decoder.
            head: arguments of ScoreHead to change as RM_0 gets its map, e.g. {"gate": "quality"}.
            lora_rank: put LoRA adapters of this rank on the encoder's attention (needs the extra `lora`); from then on
                they alone are trained in it. 0 puts none.
            adapter_rank: put residual adapters of this width behind the stages of a convolutional encoder, likewise.

        Raises:
            ValueError: nothing given, a narrower decoder, or adapters on an encoder that has them or cannot.
            ImportError: adapters without peft.
        """
        build = partial(type(self), preprocessing=self.preprocessing)
        grown = expansion.expand(build, self, decoder, head, lora_rank=lora_rank, adapter_rank=adapter_rank)
        return grown.train(self.training)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, model.safetensors and, where there is none, the beginning of a model card as README.md.

        The options are those of `huggingface_hub`'s mixin; `config` is always the model's own.
        """
        pushed = super().save_pretrained(save_directory, **{**options, "config": self.config})
        share_weights(save_directory)
        return pushed
