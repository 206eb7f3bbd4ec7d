"""CLIP-IQA against a plain computation with `transformers`' CLIPModel."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.models.clip_iqa import CLIPIQA, PROMPTS
from finpercep.models.inputs import PREPROCESSING, as_stored
from finpercep.models.vit_encoder import CLIP_MEAN, CLIP_STD

Photo = Callable[..., Tensor]


@pytest.fixture(scope="module")
def model(clip_l14: Path) -> CLIPIQA:
    return CLIPIQA.from_clip(clip_l14)


@torch.no_grad()
def plain(folder: Path, images: Tensor, prompts: tuple[str, str] = PROMPTS) -> Tensor:
    from transformers import CLIPModel, CLIPTokenizer

    def features(found: object) -> Tensor:  # a tensor in older versions of transformers
        return found if isinstance(found, Tensor) else found.pooler_output  # type: ignore[attr-defined]

    clip = CLIPModel.from_pretrained(folder).eval()
    tokens = CLIPTokenizer.from_pretrained(folder)(list(prompts), padding=True, return_tensors="pt")
    pixels = (images * 255).round() / 255
    pixels = (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    image = features(clip.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True))
    text = features(clip.get_text_features(**tokens))
    cosines = F.cosine_similarity(image[:, None], text[None], dim=-1)
    return (clip.logit_scale.exp() * cosines).softmax(-1)[:, 0]


@pytest.mark.parametrize(("height", "width"), [(56, 56), (28, 84)])
def test_matches_the_plain_computation(
    model: CLIPIQA, clip_l14: Path, make_photo: Photo, height: int, width: int
) -> None:
    images = torch.stack([make_photo(height, width, seed) for seed in range(4)])
    expected = plain(clip_l14, images)
    assert expected.std() > 1e-3  # the scores do depend on the image
    score, degradation = model(images)
    assert score.shape == (4,)
    assert degradation is None
    assert not model.has_map
    assert (score - expected).abs().max() <= 1e-5


def test_prompts_count(clip_l14: Path, model: CLIPIQA, make_photo: Photo) -> None:
    images = make_photo(56, 56)[None]
    swapped = CLIPIQA.from_clip(clip_l14, prompts=PROMPTS[::-1])
    assert torch.allclose(swapped(images).score, 1 - model(images).score, atol=1e-6)
    other = CLIPIQA.from_clip(clip_l14, prompts=("Sharp photo.", "Blurry photo."))
    assert (other(images).score - plain(clip_l14, images, ("Sharp photo.", "Blurry photo."))).abs().max() <= 1e-5
    assert len({model.fingerprint, swapped.fingerprint, other.fingerprint}) == 3


def test_any_size_and_alone_as_in_a_batch(model: CLIPIQA, make_photo: Photo) -> None:
    for height, width in ((1, 1), (3, 40), (57, 31)):
        photos = torch.stack([make_photo(height, width, seed) for seed in range(3)])
        padded = F.pad(photos, (0, -width % 14, 0, -height % 14), mode="replicate")
        together = model(photos).score
        assert ((together >= 0) & (together <= 1)).all()
        assert torch.allclose(together, model(padded).score, atol=1e-6)
        for i in range(3):
            assert (model(photos[i : i + 1]).score - together[i]).abs().max() <= 1e-5


def test_frozen_and_differentiable(model: CLIPIQA, make_photo: Photo) -> None:
    images = make_photo(30, 40)[None].requires_grad_(True)
    model(images).score.sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).float().mean() > 0.99
    assert not any(p.requires_grad for p in model.parameters())


def test_scores_are_float32_from_the_class_token_on(model: CLIPIQA, make_photo: Photo) -> None:
    import copy

    images = as_stored(torch.stack([make_photo(56, 56, seed) for seed in range(4)]))
    for dtype in (torch.bfloat16, torch.float16):
        low = copy.deepcopy(model).to(dtype)
        token = low.encoder.tokens(as_stored(images.to(dtype)))[-1][:, 0].double()
        state = {name: value.double() for name, value in low.state_dict().items()}
        cosines = F.normalize(token @ state["projection.weight"].T, dim=-1) @ state["text"].T
        expected = (state["logit_scale"].exp() * cosines).softmax(-1)[:, 0]
        score = low(images.to(dtype)).score
        assert score.dtype == torch.float32
        assert (score - expected).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images).score
    assert mixed.dtype == torch.float32
    assert (mixed - model(images).score).abs().max() < 0.05
    double = copy.deepcopy(model).double()(images.double()).score
    assert double.dtype == torch.float64
    assert (double - model(images).score).abs().max() < 1e-5


def test_round_trip_without_the_text_tower(model: CLIPIQA, make_photo: Photo, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = CLIPIQA.from_pretrained(tmp_path)
    images = make_photo(40, 60)[None]
    assert torch.equal(again(images).score, model(images).score)
    assert again.fingerprint == model.fingerprint
    assert not again.training
    assert not any(name.startswith("text_") for name in again.state_dict())
    tensors = sum(v.numel() for v in again.state_dict().values())
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * tensors + 65_536  # nothing else is in the file


def test_what_no_file_holds_moves_no_score(clip_l14: Path, model: CLIPIQA, make_photo: Photo, tmp_path: Path) -> None:
    """Of models made from now on; a folder that does not say so keeps the score that it had."""
    stored = as_stored(make_photo(56, 56)[None])
    between = (stored + 0.4 / 255).clamp(0, 1)
    assert torch.equal(model(between).score, model(stored).score)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["preprocessing"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    former = CLIPIQA.from_pretrained(tmp_path)
    assert former.preprocessing == PREPROCESSING
    assert former.fingerprint != model.fingerprint
    assert torch.equal(former(stored).score, model(stored).score)
    assert not torch.equal(former(between).score, former(stored).score)
    (tmp_path / "config.json").write_text(json.dumps(config | {"preprocessing": "rgb9"}))
    with pytest.raises(ValueError, match=r"preprocessing: expected rgb01-replicate-v1 or .*, got 'rgb9'; it may need"):
        CLIPIQA.from_pretrained(tmp_path)


def test_what_is_pushed_to_the_hub_loads(clip_l14: Path, pushed: Path) -> None:
    model = CLIPIQA.from_clip(clip_l14, attn_implementation="eager")
    model.push_to_hub("owner/name")
    assert "attn_implementation" not in (pushed / "config.json").read_text()
    assert CLIPIQA.from_pretrained(pushed).fingerprint == model.fingerprint


def test_a_reward_model_is_not_a_clip_iqa(model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json does not describe a CLIP-IQA: ") as error:
        CLIPIQA.from_pretrained(model_folder)
    assert str(model_folder) in str(error.value)


def test_errors(clip_l14: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^prompts: expected a good and a bad one, got 1"):
        CLIPIQA.from_clip(clip_l14, prompts=["Good photo."])
    with pytest.raises(ValueError, match=r"^no-such-folder: neither a folder nor a CLIP checkpoint that the hub gave"):
        CLIPIQA.from_clip("no-such-folder", local_files_only=True)
    shutil.copytree(clip_l14, tmp_path / "bare", ignore=shutil.ignore_patterns("vocab.json", "merges.txt", "tok*"))
    with pytest.raises(ValueError, match=r"bare: expected a CLIPModel with its tokenizer, got ") as error:
        CLIPIQA.from_clip(tmp_path / "bare")
    assert "\n" not in str(error.value)
