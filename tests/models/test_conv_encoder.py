import pytest
import torch
import torch.nn.functional as F

from finpercep.models.conv_encoder import ConvEncoder, EnergyStem
from finpercep.models.filters import ENERGY_CENTER, ENERGY_FLOOR, derivative_kernels


def test_derivatives_of_flat_color_vanish_and_a_ramp_is_seen_along_its_axis():
    kernels = derivative_kernels()
    assert kernels.shape == (15, 3, 3, 3)
    assert kernels.sum((2, 3)).abs().max() < 1e-6
    ramp = torch.arange(3.0).expand(3, 3, 3)  # luminance grows by 1 a pixel along x
    x, y = (kernels[:2] * ramp).sum((1, 2, 3)).tolist()
    assert x == pytest.approx(1.0, abs=1e-5)
    assert y == pytest.approx(0.0, abs=1e-5)


def test_stem_of_a_flat_image_is_the_floor_up_to_its_border():
    stem = EnergyStem(8)
    seen = []
    stem.mix.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stem(torch.full((1, 3, 16, 16), 0.75))
    energies, color = seen[0][:, :45], seen[0][:, 45:]
    floor = torch.tensor(ENERGY_FLOOR).log() - ENERGY_CENTER
    assert torch.allclose(energies, floor.expand_as(energies), atol=1e-3)  # no edge where the image ends
    assert torch.allclose(color, torch.full_like(color, 1.0))


def test_blur_lowers_fine_energy_more_than_coarse():
    stem, generator = EnergyStem(8), torch.Generator().manual_seed(0)
    texture = 0.5 + 0.1 * torch.randn(1, 3, 64, 64, generator=generator)
    seen = []
    stem.mix.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stem(texture)
    kernel = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    stem(F.conv2d(F.pad(texture, [3] * 4, mode="reflect"), kernel.expand(3, 1, 7, 7), groups=3))
    drop = (seen[0] - seen[1])[:, :45].mean((0, 2, 3)).view(3, 15).mean(1)  # by scale
    assert drop[0] > 1.5 * drop[1] > 1.5 * drop[2] > 0


def test_features_form_a_pyramid():
    encoder = ConvEncoder((8, 16, 24), (1, 1, 1))
    shapes = [tuple(f.shape) for f in encoder(torch.rand(2, 3, 48, 64))]
    assert shapes == [(2, 8, 12, 16), (2, 16, 6, 8), (2, 24, 3, 4)]
    assert encoder.stride == 16


def test_features_move_with_the_image():
    """By one stride, away from the borders: each feature belongs to the pixels at its place."""
    torch.manual_seed(0)
    encoder = ConvEncoder((8, 16), (1, 1)).eval()
    wide = torch.rand(1, 3, 32, 128 + encoder.stride)
    left, right = encoder(wide[..., :128]), encoder(wide[..., encoder.stride :])
    for a, b in zip(left, right, strict=True):
        cell = 128 // a.shape[-1]
        step, border = encoder.stride // cell, -(-encoder.radius // cell)
        inside, moved = a[..., border + step : -border], b[..., border : -border - step]
        assert torch.allclose(inside, moved, atol=1e-5)
        assert inside.std() > 0.01


def test_radius_bounds_what_a_pixel_moves():
    """A changed pixel moves no feature farther away than `radius`, and some feature near that distance."""
    encoder = ConvEncoder((8, 16), (1, 1)).double()
    with torch.no_grad():
        for block in encoder.modules():  # let every path through, so that nothing hides behind a ReLU
            if isinstance(block, torch.nn.Conv2d):
                block.weight.abs_()
    image = torch.rand(1, 3, 192, 192, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    changed = image.clone()
    changed[..., 96, 96] += 0.5
    for feature, moved in zip(encoder(image), encoder(changed), strict=True):
        stride = 192 // feature.shape[-1]
        rows = (feature - moved).abs().sum((0, 1, 3)).nonzero().flatten() * stride
        reach = max(96 - int(rows.min()) - stride, int(rows.max()) - 96)
        assert 0 < reach <= encoder.radius
    assert reach > encoder.radius / 3


def test_depths_must_fit_channels():
    with pytest.raises(ValueError, match="depths: expected one for each"):
        ConvEncoder((8, 16), (1,))


def test_gradient_through_the_operations_in_place():
    encoder = ConvEncoder((4,), (1,)).double()
    image = torch.rand(1, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: encoder(x)[0], image.requires_grad_())
