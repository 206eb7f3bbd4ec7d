"""Identities of weights: values and types."""

from __future__ import annotations

from pathlib import Path

import torch

from finpercep.io.fingerprints import folder_fingerprint, weights_fingerprint


def test_the_type_of_weights_is_part_of_the_identity() -> None:
    weights = {"a": torch.tensor([0.5, -1.0]), "count": torch.tensor(3)}
    found = {
        weights_fingerprint({}, {**weights, "a": weights["a"].to(dtype)})
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    }
    assert len(found) == 4
    assert weights_fingerprint({}, weights) == "49e161ec20be9255"  # as it has always been


def test_all_digits_of_float64_count() -> None:
    value = torch.tensor([1.0], dtype=torch.float64)
    assert weights_fingerprint({}, {"a": value}) != weights_fingerprint({}, {"a": value + 1e-12})


def test_hidden_files_and_folders_are_no_part_of_a_saved_model(tmp_path: Path) -> None:
    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return folder_fingerprint(tmp_path)

    found = write("unet/config.json", "{}")
    assert write(".git/index", "a") == write(".cache/huggingface/download/config.json.metadata", "b") == found
    assert write("unet/.keep", "") == found
    assert write("unet/config.json", "[]") != found
