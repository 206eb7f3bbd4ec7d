"""The FPN decoder with weights that leave only its wiring: levels, their sum, interpolation, sigmoid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finpercep.models.decoder import FPNDecoder


def bilinear(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def test_coarse_levels_are_added_to_finer_ones():
    decoder = FPNDecoder([1, 1, 1], [1, 1, 1], 1).double()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.zero_()
            if name.startswith("conv") and name.endswith("weight"):
                parameter[..., 1, 1] = 1  # what goes in comes out
        for lateral, factor in zip(decoder.lateral, (1, 10, 100), strict=True):
            lateral[0].weight.fill_(factor)
        decoder.conv2.bias.fill_(-3)
    generator = torch.Generator().manual_seed(0)
    fine, middle, coarse = (torch.randn(2, 1, n, n + 1, generator=generator).double() for n in (8, 4, 2))
    total = fine + bilinear(10 * middle + bilinear(100 * coarse, (4, 5)), (8, 9))
    expected = (bilinear(total.relu(), (32, 36)) - 3).sigmoid()
    assert torch.allclose(decoder([fine, middle, coarse], (32, 36)), expected, atol=1e-12)


def test_learned_upsampling_makes_the_pyramid_of_one_resolution():
    decoder = FPNDecoder([3, 3, 3], [4, 2, 1], 2)
    seen = []
    decoder.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    out = decoder([torch.rand(1, 3, 4, 5) for _ in range(3)], (32, 40))
    assert seen == [(1, 2, 16, 20)]
    assert out.shape == (1, 1, 32, 40)


def test_a_new_map_is_near_clean_and_nearly_flat():
    torch.manual_seed(0)
    logits = FPNDecoder([6], [1])([torch.randn(1, 6, 8, 8)], (32, 32)).logit()
    assert (logits + 2).abs().max() < 1
    assert logits.std() > 0.01


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"^width: expected light, full or a number of channels, got 0$"):
        FPNDecoder([6], [1], 0)
    with pytest.raises(ValueError, match=r"^upsampling: expected powers of two, got 3$"):
        FPNDecoder([6], [3])
