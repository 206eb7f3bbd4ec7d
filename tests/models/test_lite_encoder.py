from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finpercep.models import RewardModel
from finpercep.models.lite_encoder import LiteEncoder, SameConv
from tests.conftest import synthetic_photo

KIND = {"type": "efficientnet-lite0+energy"}


@pytest.fixture(scope="module")
def encoder() -> LiteEncoder:
    """With energies that reach the other path, and weights that let signals through all of it."""
    torch.manual_seed(0)
    encoder = LiteEncoder().eval()
    for part in encoder.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
    return encoder


def test_features_form_a_pyramid(encoder: LiteEncoder) -> None:
    with torch.no_grad():
        shapes = [tuple(f.shape) for f in encoder(torch.rand(2, 3, 64, 96))]
    assert shapes == [(2, 72, 16, 24), (2, 104, 8, 12), (2, 208, 4, 6), (2, 288, 2, 3)]
    assert encoder.channels == [72, 104, 208, 288]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (5, 1)])
def test_convolutions_pad_as_tensorflow_does(kernel: int, stride: int) -> None:
    """For an even side: (kernel - stride) zeros in all, the odd one at the end."""
    torch.manual_seed(0)
    conv, x = SameConv(3, 4, kernel, stride), torch.rand(1, 3, 8, 8)
    total = kernel - stride
    before = total // 2
    padded = torch.zeros(1, 3, 8 + total, 8 + total)
    padded[..., before : before + 8, before : before + 8] = x
    expected = torch.nn.functional.conv2d(padded, conv.weight, conv.bias, stride)
    torch.testing.assert_close(conv(x), expected)


def test_a_pixel_moves_features_within_the_radius_alone(encoder: LiteEncoder) -> None:
    side = 2 * encoder.radius + 96
    image = torch.full((1, 3, side, side), 0.5, dtype=torch.float64)
    moved, middle = image.clone(), side // 2
    moved[..., middle, middle] += 0.3
    double = LiteEncoder().double()
    double.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        for a, b in zip(double(image), double(moved), strict=True):
            cell = side // a.shape[-1]
            rows = ((a - b).abs().amax((0, 1, 3)) > 0).nonzero().flatten() * cell
            assert len(rows)
            assert rows.min() + cell > middle - encoder.radius
            assert rows.max() <= middle + encoder.radius


def test_energies_reach_every_injection() -> None:
    encoder = LiteEncoder().eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = [f[:, :w].clone() for f, w in zip(encoder(image), (24, 40, 112, 192), strict=True)]
        for layer in encoder.inject.values():
            layer.bias.fill_(1.0)  # type: ignore[union-attr]
        after = [f[:, :w] for f, w in zip(encoder(image), (24, 40, 112, 192), strict=True)]
    torch.testing.assert_close(after[0], before[0] + 1.0)
    assert all((a - b).abs().max() > 1e-6 for a, b in zip(after, before, strict=True))


@pytest.fixture(scope="module")
def model(encoder: LiteEncoder) -> RewardModel:
    torch.manual_seed(1)
    model = RewardModel(KIND, {"width": 16}, {}, "rgb8-replicate-v2")
    model.encoder.load_state_dict(encoder.state_dict())
    nn.init.normal_(model.decoder.conv2.weight, std=0.3)  # type: ignore[union-attr]
    return model.eval()


def photo(height: int, width: int) -> Tensor:
    return (synthetic_photo(height, width) * 255).round() / 255


def test_tiles_have_no_seams(model: RewardModel) -> None:
    image = photo(230, 290)
    whole, tiled = model.score(image), model.score(image, tile=64)
    torch.testing.assert_close(tiled.score, whole.score, rtol=0, atol=1e-5)
    torch.testing.assert_close(tiled.map, whole.map, rtol=0, atol=1e-4)


def test_alone_as_in_a_batch(model: RewardModel) -> None:
    images = torch.stack([photo(64, 64), photo(64, 64).flip(-1)])
    with torch.no_grad():
        both, alone = model(images), model(images[1:])
    torch.testing.assert_close(both.map[1:], alone.map, rtol=0, atol=1e-4)
    torch.testing.assert_close(both.score[1:], alone.score, rtol=0, atol=1e-6)


def test_round_trip(model: RewardModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model.save_pretrained(tmp_path / "saved")
    again = RewardModel.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == model.fingerprint
    assert again.config["preprocessing"] == "rgb8-replicate-v2"
    image = photo(40, 50)[None]
    with torch.no_grad():
        assert torch.equal(again(image).score, model(image).score)


def test_gradients_reach_pixels_and_all_parameters(model: RewardModel) -> None:
    image = photo(64, 64)[None].requires_grad_(True)
    output = model(image)
    (output.score.sum() + output.map.mean()).backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert missing == []
    model.zero_grad()


def test_the_embedded_model_is_small_and_sees_a_fault() -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image has the photo")
    small = RewardModel.from_pretrained("finpercep-small")
    assert sum(p.numel() for p in small.parameters()) < 3_000_000
    # A photo: noise and squares, as elsewhere in this file, are faults to a model that knows patterns.
    clean = torch.from_numpy(data.astronaut()[100:228, 100:292]).permute(2, 0, 1).float() / 255
    broken = clean.clone()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 12, 12, generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    broken[:, 40:88, 64:112] = (0.5 * broken[:, 40:88, 64:112] + 0.5 * noise).clamp(0, 1)
    output = small.score(torch.stack([clean, broken]))
    inside = output.map[1, 0, 44:84, 68:108].mean()
    outside = output.map[1, 0, :, 140:].mean()
    assert inside > 3 * outside
    assert outside < 0.05
