import torch
import torch.nn.functional as F

from finpercep.data import FilterBank, fault_target, random_boxes, region_swap
from finpercep.data.image_ops import gaussian_blur
from finpercep.data.targets import ALPHA, SCALE


def test_filter_bank_shape_and_flat_images():
    bank = FilterBank()
    assert bank(torch.rand(2, 3, 33, 50)).shape == (2, 46, 5, 7)
    dark, light = bank(torch.full((1, 3, 32, 32), 0.1)), bank(torch.full((1, 3, 32, 32), 0.9))
    assert torch.allclose(dark, light, atol=1e-3)  # a flat patch has no texture, whatever its brightness
    assert torch.allclose(dark[:, :-1], torch.tensor(0.002).log() + 4.5, atol=1e-3)


def test_filter_bank_sees_texture_not_its_phase():
    """Shifted texture stays near, blurred texture moves away."""
    bank, generator = FilterBank(), torch.Generator().manual_seed(0)
    texture = 0.5 + 0.15 * torch.randn(1, 3, 96, 96, generator=generator)
    near = 1 - F.cosine_similarity(bank(texture), bank(texture.roll(5, 3)), dim=1).mean()
    far = 1 - F.cosine_similarity(bank(texture), bank(gaussian_blur(texture[0], 2.0)[None]), dim=1).mean()
    # Not nearer: at the coarsest scale a cell averages 2x2 values and its neighbors': two pieces of one texture differ.
    assert near < 0.03
    assert far > 10 * near


def test_target_is_zero_for_the_same_image_and_away_from_the_fault(photo):
    bank = FilterBank()
    assert fault_target(photo[None], photo[None], bank).abs().max() == 0
    photo = F.interpolate(photo[None], (128, 128), mode="bilinear")[0]
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:64, 32:64] = 1
    noise = 0.3 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    syn = region_swap(photo, (photo + noise).clamp(0, 1), mask)
    target = fault_target(photo[None], syn[None], bank)[0]
    assert target[mask > 0].mean() > 0.7
    assert target[:, 96:].abs().max() == 0
    assert target[:, :, 96:].abs().max() == 0


def test_target_formula_and_shared_photo(photo):
    """One photo against several versions = each pair alone, and the printed formula."""
    bank, generator = FilterBank(), torch.Generator().manual_seed(1)
    blurred = gaussian_blur(photo, 1.5)
    mask = random_boxes(*photo.shape[-2:], generator)
    versions = torch.stack([blurred, region_swap(photo, blurred, mask)])
    both = fault_target(photo[None], versions, bank)
    pixel = (photo - blurred).abs().mean(0)
    distance = 1 - F.cosine_similarity(bank(photo[None]), bank(blurred[None]), dim=1)
    distance = F.interpolate(distance[None], photo.shape[-2:], mode="bilinear")[0, 0]
    expected = ((ALPHA * pixel + (1 - ALPHA) * distance) / SCALE).clamp(0, 1)
    assert torch.allclose(both[0, 0], expected, atol=2e-5)
    assert torch.allclose(both[1], fault_target(photo[None], versions[1:], bank)[0], atol=1e-6)
