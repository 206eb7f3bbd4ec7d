"""Growing a reward model: the same answers at that moment, and new parts that learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finpercep.models import RewardModel
from tests.models.conftest import VIT

CONV = {"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True}


def model_of(encoder: dict[str, Any], decoder: dict[str, Any] | None, **head: Any) -> RewardModel:
    torch.manual_seed(0)
    model = RewardModel(encoder, decoder, head)
    with torch.no_grad():  # at first a map is flat, and normalizations do nothing: let them matter
        if model.decoder is not None:
            model.decoder.conv2.weight.normal_()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gate", ["degradation", "quality", "residual"])
@pytest.mark.parametrize("encoder", [CONV, VIT], ids=["conv", "vit"])
def test_a_first_map_is_flat_and_leaves_the_score(encoder: dict[str, Any], gate: str, images: torch.Tensor) -> None:
    base = model_of(encoder, None)
    grown = base.expand({"width": 8}, {"gate": gate})
    output = grown(images)
    torch.testing.assert_close(output.score, base(images).score, atol=1e-6, rtol=0)
    flat = torch.full_like(output.map, -2.0).sigmoid()
    torch.testing.assert_close(output.map, flat, atol=1e-7, rtol=0)
    assert grown.head.gate == grown.config["head"]["gate"] == gate
    (output.map.mean() + output.score.mean()).backward()
    moving = (grown.decoder.conv2.weight.grad != 0).any(dim=(0, 2, 3))
    assert moving.sum() >= 4  # of 8 channels: the map will not stay flat


@pytest.mark.parametrize("encoder", [CONV, VIT], ids=["conv", "vit"])
def test_a_wider_decoder_gives_the_same_map_and_score(encoder: dict[str, Any], images: torch.Tensor) -> None:
    norm = {"norm": True} if encoder is CONV else {}
    light = model_of(encoder, {"width": 6, **norm}, gate="quality")
    full = light.expand({"width": 20})
    for training in (False, True):
        before, after = light.train(training)(images), full.train(training)(images)
        assert before.map.std() > 0.01
        torch.testing.assert_close(after.map, before.map, atol=1e-6 if encoder is CONV else 2e-6, rtol=0)
        torch.testing.assert_close(after.score, before.score, atol=1e-6, rtol=0)
    full(images).map.mean().backward()
    new = full.decoder.conv2.weight.grad[:, 6:]
    assert (new != 0).any(dim=(0, 2, 3)).sum() >= 10  # of 14 new channels; dead ones see no gradient
    assert full.config["decoder"] == {"width": 20, **norm}


@pytest.mark.parametrize("name", ["finpercep-tiny", "finpercep-small"])
def test_growth_of_the_embedded_stages_changes_no_score(name: str, photo_u8: torch.Tensor) -> None:
    """RM_0 to a light decoder, RM_1 to a full one with adapters, as their cards say; by the same kernels."""
    zero, one = (RewardModel.from_pretrained(f"{name}/{stage}").requires_grad_(False) for stage in (0, 1))
    for before, after in (
        (zero, zero.expand({"width": "light"})),
        (one, one.expand({"width": "full"}, adapter_rank=4)),
    ):
        found, expected = after.requires_grad_(False).score(photo_u8), before.score(photo_u8)
        torch.testing.assert_close(found.score, expected.score, atol=1e-6, rtol=0)


def test_lora_leaves_the_output_and_is_all_that_trains_in_the_encoder(images: torch.Tensor, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    light = model_of(VIT, {"width": 6})
    grown = light.expand({"width": 12}, lora_rank=2)
    torch.testing.assert_close(grown(images).map, light(images).map, atol=1e-5, rtol=0)
    torch.testing.assert_close(grown(images).score, light(images).score, atol=1e-5, rtol=0)
    trainable = [name for name, p in grown.encoder.named_parameters() if p.requires_grad]
    assert len(trainable) == 4 * 2 * 2  # layers × (query, value) × (A, B)
    assert all("lora_" in name for name in trainable)
    assert all(p.requires_grad for p in [*grown.decoder.parameters(), *grown.head.parameters()])

    with torch.no_grad():  # trained a little
        for name, p in grown.encoder.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    assert (grown(images).map - light(images).map).abs().max() > 1e-4
    grown.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(images).map, grown(images).map)
    assert loaded.fingerprint == grown.fingerprint != light.fingerprint
    wider = loaded.expand({"width": 16})
    torch.testing.assert_close(wider(images).map, grown(images).map, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"^lora_rank: expected 0, because the encoder has adapters already$"):
        loaded.expand(lora_rank=2)


@pytest.mark.parametrize(("kind", "adapters"), [(CONV, 2), ({"type": "efficientnet-lite0+energy"}, 9)])
def test_residual_adapters_leave_the_output_and_are_all_that_trains_in_the_encoder(
    kind: dict[str, Any], adapters: int, images: torch.Tensor, tmp_path: Path
) -> None:
    norm = {"norm": True} if kind is CONV else {}
    light = model_of(kind, {"width": 6, **norm}).fold_norms()
    grown = light.expand({"width": 12}, adapter_rank=3)
    with torch.no_grad():  # both by the same kernels: trained layers have PyTorch's, which round otherwise
        torch.testing.assert_close(grown(images).map, light(images).map, atol=1e-6, rtol=0)
        torch.testing.assert_close(grown(images).score, light(images).score, atol=1e-6, rtol=0)
    trainable = {name: p for name, p in grown.encoder.named_parameters() if p.requires_grad}
    assert len(trainable) == adapters * 4  # stages × two convolutions × (weight, bias)
    (grown(images).map.mean() + grown(images).score.mean()).backward()
    assert any((p.grad != 0).any() for name, p in trainable.items() if name.endswith("up.weight"))
    with torch.no_grad():  # trained a little
        for name, p in trainable.items():
            if name.endswith("up.weight"):
                p.normal_(std=0.5)
    assert (grown(images).map - light(images).map).abs().max() > 1e-5
    grown.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).map, grown(images).map, atol=1e-6, rtol=0)
    assert loaded.fingerprint == grown.fingerprint != light.fingerprint
    with pytest.raises(ValueError, match=r"^adapter_rank: expected 0, because the encoder has adapters already$"):
        loaded.expand(adapter_rank=2)


def test_what_cannot_grow_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    light = model_of(CONV, {"width": 6, "norm": True})
    with pytest.raises(ValueError, match=r"^expand: expected a decoder, a lora_rank or an adapter_rank, got none$"):
        light.expand()
    with pytest.raises(ValueError, match=r"^decoder: expected at least the present width of 6, got 4$"):
        light.expand({"width": 4, "norm": True})
    with pytest.raises(ValueError, match=r"^decoder: expected no norm, or the one of the present decoder$"):
        light.expand({"width": 8, "norm": False})
    with pytest.raises(ValueError, match=r"^width: expected light, full or a number of channels, got 'huge'$"):
        light.expand({"width": "huge"})
    with pytest.raises(ValueError, match=r"^head: expected None"):
        light.expand({"width": 8, "norm": True}, {"gate": "quality"})
    with pytest.raises(ValueError, match=r"^lora_rank: expected a vision transformer"):
        light.expand(lora_rank=2)
    with pytest.raises(ValueError, match=r"^lora_rank: expected at least 1, got -1$"):
        model_of(VIT, None).expand(lora_rank=-1)
    with pytest.raises(ValueError, match=r"^adapter_rank: expected a convolutional encoder"):
        model_of(VIT, None).expand(adapter_rank=2)
    with pytest.raises(ValueError, match=r"^adapter_rank: expected at least 1, got -1$"):
        light.expand(adapter_rank=-1)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "finpercep\[lora\]"'):
        model_of(VIT, None).expand(lora_rank=2)
