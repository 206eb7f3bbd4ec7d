"""CLIP-IQA, the base reward RM_0 of CLIP presets.

Wang, Chan, Loy: Exploring CLIP for Assessing the Look and Feel of Images (AAAI 2023, arXiv 2207.12396).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from finpercep.io.fingerprints import weights_fingerprint
from finpercep.io.reasons import one_line
from finpercep.models.attention import DEFAULT_ATTENTION, with_attention, without_attention
from finpercep.models.checkpoint import FLOATS, load_model, resolve, share_weights
from finpercep.models.clip_files import (
    check_vision_tower,
    clip_folder,
    load_vision_tower,
    read_weights,
    vision_config,
)
from finpercep.models.inputs import PREPROCESSING, STORED_PREPROCESSING, as_stored, check_images, known_preprocessing
from finpercep.models.output import RewardOutput
from finpercep.models.precision import at_least_float32, without_autocast
from finpercep.models.tiles import pad_to_multiple
from finpercep.models.vit_encoder import ViTEncoder

PROMPTS = ("Good photo.", "Bad photo.")


class CLIPIQA(nn.Module, PyTorchModelHubMixin, library_name="finpercep", tags=["image-quality-assessment"]):
    """Score = softmax over the scaled cosines of the image to a good and a bad prompt; the good one's share.

    The prompts' embeddings are stored, so there is no text tower. `from_clip` makes one from a CLIP checkpoint.

    The paper drops the position embeddings to take any size; it uses a ResNet, where only the last pooling has
    them. A vision transformer is nothing without its own, so here they are interpolated to the image's grid.

    Args:
        encoder: `config` and `attn_implementation` of `ViTEncoder`; the tap is its last layer.
        embedding: size of CLIP's joint space.
        prompts: good, bad.
        preprocessing: as of `RewardModel`; `from_clip` scores what an 8-bit file would hold.

    Shape: images (B,3,H,W), float in [0, 1], any size -> `RewardOutput` with scores (B,) in [0, 1], higher = better,
        and without a map. Differentiable. Scores are float32, those of a float64 model float64.
    """

    lower_better = False
    has_map = False

    @torch.inference_mode(False)  # made under inference mode, a model could never be trained
    def __init__(
        self,
        encoder: dict[str, Any],
        embedding: int,
        prompts: Sequence[str] = PROMPTS,
        preprocessing: str | None = None,
    ) -> None:
        super().__init__()
        if len(prompts) != 2:
            raise ValueError(f"prompts: expected a good and a bad one, got {len(prompts)}")
        self.preprocessing = known_preprocessing(preprocessing)
        self.config = {"encoder": without_attention(encoder), "embedding": embedding, "prompts": list(prompts)}
        if self.preprocessing != PREPROCESSING:
            self.config["preprocessing"] = self.preprocessing
        self.encoder = ViTEncoder(taps=[encoder["config"]["num_hidden_layers"]], **encoder)
        self.projection = nn.Linear(self.encoder.channels[-1], embedding, bias=False)
        self.text: Tensor
        self.logit_scale: Tensor
        self.register_buffer("text", torch.zeros(2, embedding))
        self.register_buffer("logit_scale", torch.zeros(()))

    def forward(self, images: Tensor) -> RewardOutput:
        """Scores of images (B,3,H,W), float in [0, 1]; the map is None.

        Raises:
            ValueError: wrong rank or channels, no pixels, or another device than the model's.
            TypeError: not a tensor, not a floating-point tensor, or (without autocast) another dtype than the model's.
        """
        check_images(images, self.projection.weight)
        if self.preprocessing == STORED_PREPROCESSING:
            images = as_stored(images)
        class_token = self.encoder.tokens(pad_to_multiple(images, self.encoder.stride))[-1][:, 0]
        dtype = at_least_float32(class_token.dtype)  # times 100, half-precision cosines would be steps of 0.4
        with without_autocast(images.device):
            image = F.linear(class_token.to(dtype), self.projection.weight.to(dtype))
            cosines = F.normalize(image, dim=-1) @ self.text.to(dtype).T  # [B, 2]
            logits = self.logit_scale.to(dtype).exp() * cosines
        return RewardOutput(logits.softmax(-1)[:, 0], None)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify weights, prompts, configuration and preprocessing."""
        return weights_fingerprint([self.preprocessing, self.config], self.state_dict())

    @classmethod
    @torch.inference_mode(False)
    def from_clip(
        cls,
        source: str | Path,
        *,
        prompts: Sequence[str] = PROMPTS,
        attn_implementation: str = DEFAULT_ATTENTION,
        **hub: Any,
    ) -> CLIPIQA:
        """From a CLIPModel with its tokenizer: a folder or a hub id, e.g. "openai/clip-vit-large-patch14".

        Args:
            prompts: good, bad.
            attn_implementation: see `ViTEncoder`.
            hub: for downloads, see `RewardModel.from_pretrained`.

        Raises:
            TypeError: an option for downloads that is not known.
            ValueError: not such a checkpoint; names the folder or id.
        """
        folder = clip_folder(source, **hub)
        config = vision_config(folder)
        check_vision_tower(folder, config, [config["num_hidden_layers"]])
        rest = read_weights(folder, ("visual_projection.weight", "logit_scale"))
        if len(rest) != 2:
            raise ValueError(f"{folder}: expected a CLIPModel with its projection, got only a vision tower")
        projection, scale = rest["visual_projection.weight"], rest["logit_scale"]
        width = config["hidden_size"]
        if projection.dim() != 2 or projection.shape[1] != width or scale.numel() != 1:
            raise ValueError(f"{folder}: expected a projection from {width} channels, got {tuple(projection.shape)}")
        if not all(tensor.dtype in FLOATS for tensor in rest.values()):
            raise ValueError(f"{folder}: expected a floating-point projection, got {projection.dtype}")
        encoder = with_attention({"config": config}, attn_implementation)
        model = cls(encoder, len(projection), prompts, STORED_PREPROCESSING)
        load_vision_tower(model.encoder, folder)
        with torch.no_grad():
            model.projection.weight.copy_(projection)
            model.logit_scale.copy_(scale.reshape(()))
            model.text.copy_(_embed_prompts(source, prompts, hub))
        return model.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name_or_path: str | Path,
        *,
        dtype: torch.dtype | None = torch.float32,
        attn_implementation: str = DEFAULT_ATTENTION,
        **options: Any,
    ) -> CLIPIQA:
        """Load what `save_pretrained` wrote: a folder or a hub id. Frozen, in evaluation mode.

        Args:
            dtype: floating-point type of the model, e.g. torch.bfloat16; None is that of the file.
            attn_implementation: see `ViTEncoder`.
            options: for downloads, see `RewardModel.from_pretrained`.

        Raises:
            TypeError: an option for downloads that is not known.
            ValueError: no such folder, or files that do not fit; names the file.
        """
        return load_model(
            cls,
            resolve(name_or_path, **options),
            ("encoder", "embedding", "prompts", "preprocessing"),
            kind="a CLIP-IQA",
            shown=name_or_path,
            dtype=dtype,
            change=lambda encoder: with_attention(encoder, attn_implementation),
        ).requires_grad_(False)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json and model.safetensors.

        The options are those of `huggingface_hub`'s mixin; `config` is always the model's own.
        """
        pushed = super().save_pretrained(save_directory, **{**options, "config": self.config})
        share_weights(save_directory)
        return pushed


@torch.no_grad()
def _embed_prompts(source: str | Path, prompts: Sequence[str], hub: dict[str, Any]) -> Tensor:
    """Unit embeddings (2, E) of the prompts by CLIP's text tower."""
    from transformers import CLIPModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(source), **hub)
        clip = CLIPModel.from_pretrained(str(source), **hub).eval().float()
        words = clip.config.text_config.vocab_size
        if len(tokenizer) != words:  # transformers makes an empty tokenizer where its files are missing
            raise ValueError(f"a tokenizer of {len(tokenizer)} words for a text tower of {words}")
        tokens = tokenizer(list(prompts), padding=True, return_tensors="pt")
        text = clip.text_projection(clip.text_model(**tokens).pooler_output)
    except Exception as error:  # tokenizers and transformers raise many types on foreign folders
        raise ValueError(f"{source}: expected a CLIPModel with its tokenizer, got {one_line(error)}") from error
    return F.normalize(text, dim=-1)
