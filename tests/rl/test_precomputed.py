"""Sets with latents and embeddings that were computed beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from finpercep.io.images import load_image
from finpercep.io.pictures import as_picture, save_image
from finpercep.rl.photos import Crops, load_pairs
from finpercep.rl.precomputed import empty_texts


class Touch:
    """What makes a folder where it is read by pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def test_latents_and_texts_computed_beforehand(tmp_path):
    """A folder as DiT4SR's training has it: whole images, each with its own tensors."""
    draw = torch.Generator().manual_seed(0)
    for folder in ("latent_lr", "prompt_embeds", "pooled_prompt_embeds"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        large = F.interpolate(torch.rand(1, 3, 4, 4, generator=draw), (32, 32), mode="bicubic").clamp(0, 1)[0]
        save_image(as_picture(large), tmp_path / "sr_bicubic" / f"{number}.png")
        save_image(as_picture(large), tmp_path / "gt" / f"{number}.png")
        torch.save(torch.full((1, 4, 4, 4), float(number)), tmp_path / "latent_lr" / f"{number}.pt")
        torch.save(torch.full((1, 5, 6), float(number)), tmp_path / "prompt_embeds" / f"{number}.pt")
        torch.save(torch.full((1, 7), float(number)), tmp_path / "pooled_prompt_embeds" / f"{number}.pt")
    torch.save(torch.zeros(1, 5, 6), tmp_path / "prompt_embeds" / "NULL_prompt_embeds.pt")
    pairs = load_pairs([tmp_path], "train", 4)
    batch = Crops(pairs, 32, degraded=1.0).batch(0, 8)
    which = batch.extras["latent_lr"][:, 0, 0, 0]
    assert len(which.unique()) > 1
    assert torch.equal(batch.extras["prompt_embeds"], which.view(-1, 1, 1).expand(-1, 5, 6))
    assert torch.equal(batch.extras["pooled_prompt_embeds"], which.view(-1, 1).expand(-1, 7))
    for image, number in zip(batch.photo, which.tolist(), strict=True):
        assert torch.equal(image, load_image(tmp_path / "gt" / f"{number:.0f}.png").float() / 255)
    assert (F.avg_pool2d(batch.photo, 4) - batch.lr).abs().max() < 0.1
    # An image without embeddings has those of the empty text, or is named.
    (tmp_path / "prompt_embeds" / "1.pt").unlink()
    found = Crops(load_pairs([tmp_path], "train", 4), 32).batch(0, 8)
    expected = torch.where(which == 1, 0.0, which)
    assert torch.equal(found.extras["prompt_embeds"], expected.view(-1, 1, 1).expand(-1, 5, 6))
    (tmp_path / "pooled_prompt_embeds" / "1.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.pt: expected an embedding, .*NULL_pooled_prompt_embeds\.pt, got"):
        load_pairs([tmp_path], "train", 4)
    with pytest.raises(ValueError, match=r"side: expected 32 x 32 as .*, whose latents are given, got 16"):
        Crops(pairs, 16)
    torch.save(Touch(tmp_path / "touched"), tmp_path / "latent_lr" / "0.pt")
    with pytest.raises(ValueError, match=r"0\.pt: expected a tensor"):
        Crops(pairs, 32).batch(0, 8)
    assert not (tmp_path / "touched").exists()  # no code in it is run
    (tmp_path / "latent_lr" / "0.pt").write_bytes(b"no tensor")
    with pytest.raises(ValueError, match=r"0\.pt: expected a tensor"):
        Crops(pairs, 32).batch(0, 8)
    part = batch[torch.tensor([2, 0])].repeat(2)
    assert torch.equal(part.extras["latent_lr"][:, 0, 0, 0], which[[2, 2, 0, 0]])
    with pytest.raises(ValueError, match="extras: expected 8 rows of latent_lr, one for each image, got 2"):
        batch.with_extras({"latent_lr": torch.zeros(2, 4)})


def test_the_empty_text_of_a_folder_below_home(tmp_path, monkeypatch):
    """As the images of `~/set` are found, so are its embeddings."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        (tmp_path / "set" / name).mkdir(parents=True)
        torch.save(torch.ones(1, 2), tmp_path / "set" / name / f"NULL_{name}.pt")
    found = empty_texts(["~/none", "~/set"])
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "prompt_embeds": [[1.0, 1.0]],
        "pooled_prompt_embeds": [[1.0, 1.0]],
    }
