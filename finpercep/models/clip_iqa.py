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

from finpercep.models.checkpoint import fingerprint, load_checkpoint, load_weights, resolve, share_weights
from finpercep.models.clip_files import clip_folder, load_vision_tower, read_weights, vision_config
from finpercep.models.head import at_least_float32, without_autocast
from finpercep.models.reward_model import PREPROCESSING, pad_to_multiple
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

    Shape: images (B,3,H,W), float in [0, 1], any size -> (B,) in [0, 1], higher = better. Differentiable. Scores are
        float32, those of a float64 model float64.
    """

    lower_better = False

    def __init__(self, encoder: dict[str, Any], embedding: int, prompts: Sequence[str] = PROMPTS) -> None:
        super().__init__()
        if len(prompts) != 2:
            raise ValueError(f"prompts: expected a good and a bad one, got {len(prompts)}")
        saved = {key: value for key, value in encoder.items() if key != "attn_implementation"}
        self.config = {"encoder": saved, "embedding": embedding, "prompts": list(prompts)}
        self.encoder = ViTEncoder(taps=[encoder["config"]["num_hidden_layers"]], **encoder)
        self.projection = nn.Linear(self.encoder.channels[-1], embedding, bias=False)
        self.text: Tensor
        self.logit_scale: Tensor
        self.register_buffer("text", torch.zeros(2, embedding))
        self.register_buffer("logit_scale", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        class_token = self.encoder.tokens(pad_to_multiple(images, self.encoder.stride))[-1][:, 0]
        dtype = at_least_float32(class_token.dtype)  # times 100, half-precision cosines would be steps of 0.4
        with without_autocast(images.device):
            image = F.linear(class_token.to(dtype), self.projection.weight.to(dtype))
            cosines = F.normalize(image, dim=-1) @ self.text.to(dtype).T  # [B, 2]
            logits = self.logit_scale.to(dtype).exp() * cosines
        return logits.softmax(-1)[:, 0]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify weights, prompts, configuration and preprocessing."""
        return fingerprint([PREPROCESSING, self.config], self.state_dict())

    @classmethod
    def from_clip(
        cls,
        source: str | Path,
        *,
        prompts: Sequence[str] = PROMPTS,
        attn_implementation: str = "sdpa",
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
        encoder = {"config": vision_config(folder), "attn_implementation": attn_implementation}
        rest = read_weights(folder, ("visual_projection.weight", "logit_scale"))
        if len(rest) != 2:
            raise ValueError(f"{folder}: expected a CLIPModel with its projection, got only a vision tower")
        model = cls(encoder, rest["visual_projection.weight"].shape[0], prompts)
        load_vision_tower(model.encoder, folder)
        model.projection.load_state_dict({"weight": rest["visual_projection.weight"]})
        model.logit_scale.copy_(rest["logit_scale"].reshape(()))
        model.text.copy_(_embed_prompts(source, prompts, hub))
        return model.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: str | Path, *, attn_implementation: str = "sdpa", **options: Any
    ) -> CLIPIQA:
        """Load what `save_pretrained` wrote: a folder or a hub id. Frozen, in eval mode.

        Args:
            attn_implementation: see `ViTEncoder`.
            options: for downloads, see `RewardModel.from_pretrained`.

        Raises:
            TypeError: an option for downloads that is not known.
            ValueError: no such folder, or files that do not fit; names the file.
        """
        config, weights = load_checkpoint(resolve(name_or_path, **options), ("encoder", "embedding", "prompts"))
        encoder = {**config.pop("encoder"), "attn_implementation": attn_implementation}
        try:
            model = cls(encoder, **config)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{name_or_path}: config.json does not describe a CLIP-IQA: {error}") from error
        load_weights(model, weights, name_or_path)
        return model.eval().requires_grad_(False)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json and model.safetensors.

        The options are those of `huggingface_hub`'s mixin, but that `config` is always the model's own.
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
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{source}: expected a CLIPModel with its tokenizer, got {reason}") from error
    return F.normalize(text, dim=-1)
