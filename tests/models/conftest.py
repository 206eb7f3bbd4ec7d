"""Small random CLIP checkpoints on disk, in the layout of the real ones (a CLIPModel with its tokenizer)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

START, END = "<|startoftext|>", "<|endoftext|>"

VIT: dict[str, Any] = {
    "type": "vit",
    "config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "taps": [1, 2, 3, 4],
}
"""A small vision transformer that needs no checkpoint."""


def write_clip(folder: Path, *, layers: int, patch: int, seed: int = 0) -> Path:
    from transformers import CLIPConfig, CLIPModel

    vocabulary = write_tokenizer(folder)
    shared = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "projection_dim": 24}
    config = CLIPConfig(
        text_config={
            **shared,
            "num_hidden_layers": 2,
            "vocab_size": vocabulary,
            "max_position_embeddings": 32,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
        vision_config={**shared, "num_hidden_layers": layers, "image_size": 4 * patch, "patch_size": patch},
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and biases start as ones and zeros, and position embeddings small: a mix-up would not show.
            if name != "logit_scale":
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> int:
    """CLIP's byte-level tokenizer without merges; returns the size of its vocabulary."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    letters = [chr(b) for b in kept] + [chr(256 + i) for i in range(256 - len(kept))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}))
    return len(words)


@pytest.fixture
def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of the hub: what `push_to_hub` uploads is copied there."""
    import shutil

    from huggingface_hub import HfApi

    def create_repo(self: HfApi, repo_id: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self: HfApi, *, folder_path: Path, **_: object) -> str:
        shutil.copytree(folder_path, tmp_path / "hub")
        return "https://hub/commit"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return tmp_path / "hub"


@pytest.fixture(scope="session")
def clip_b16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 layers, patches of 16, images of 64."""
    return write_clip(tmp_path_factory.mktemp("clip-b-16"), layers=12, patch=16)


@pytest.fixture(scope="session")
def clip_l14(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 layers, patches of 14, images of 56."""
    return write_clip(tmp_path_factory.mktemp("clip-l-14"), layers=24, patch=14)
