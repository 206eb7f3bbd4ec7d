import pytest
import torch

from finpercep.data import random_blobs, random_boxes, region_swap


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_boxes_are_boxes_of_the_asked_size():
    for seed in range(20):
        mask = random_boxes(50, 80, seeded(seed), count=(1, 1), side=(0.2, 0.4))
        rows, columns = mask[0].any(1).sum().item(), mask[0].any(0).sum().item()
        assert mask.shape == (1, 50, 80)
        assert mask.sum() == rows * columns  # one full rectangle
        assert 10 <= rows <= 20
        assert 16 <= columns <= 32


def test_boxes_count_and_seed():
    areas = [random_boxes(64, 64, seeded(s), count=(3, 3), side=(0.1, 0.1)).sum().item() for s in range(30)]
    assert max(areas) == 3 * 36
    assert torch.equal(random_boxes(30, 30, seeded(1)), random_boxes(30, 30, seeded(1)))
    assert not torch.equal(random_boxes(30, 30, seeded(1)), random_boxes(30, 30, seeded(2)))


def test_boxes_fit_tiny_images():
    assert random_boxes(1, 1, seeded(0)).tolist() == [[[1.0]]]


def test_blobs_cover_the_asked_area():
    for seed in range(20):
        share = random_blobs(64, 64, seeded(seed), area=(0.1, 0.3)).mean().item()
        assert 0.095 <= share <= 0.305


def test_region_swap_takes_every_kind_of_mask():
    """One region as bool, as 0 and 1 of floats, and as 0 and 255, in images of either type."""
    photo, distorted = torch.full((3, 4, 4), 51, dtype=torch.uint8), torch.full((3, 4, 4), 204, dtype=torch.uint8)
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[:, :2] = True
    expected = torch.where(region, distorted, photo)
    for mask in (region, region.float(), region.double(), region.to(torch.uint8) * 255):
        assert torch.equal(region_swap(photo, distorted, mask), expected)
    for mask in (region, region.float(), region.to(torch.uint8) * 255):
        torch.testing.assert_close(region_swap(photo / 255, distorted / 255, mask), expected / 255)
    assert region_swap(photo, distorted, torch.full((1, 4, 4), 0.5))[0, 0, 0] == 128  # 127.8
    with pytest.raises(ValueError, match=r"mask: expected bool, uint8 or floats, got torch.int64"):
        region_swap(photo, distorted, region.long())
    with pytest.raises(ValueError, match=r"^photo, distorted: expected both floats or both uint8, got torch.uint8, "):
        region_swap(photo, distorted / 255, region)


@pytest.mark.parametrize("feather", [False, True])
def test_region_swap_mixes_by_the_mask(feather):
    photo, distorted = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 0.25 if feather else 1
    syn = region_swap(photo, distorted, mask)
    assert syn[:, :2].unique().tolist() == [0.25 if feather else 1.0]
    assert syn[:, 2:].unique().tolist() == [0.0]


def test_region_swap_leaves_the_rest_bit_identical():
    photo, distorted = torch.rand(3, 8, 8, generator=seeded(0)), torch.rand(3, 8, 8, generator=seeded(1))
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:4, 2:4] = 1
    syn = region_swap(photo, distorted, mask)
    assert torch.equal(syn[:, 4:], photo[:, 4:])
    assert torch.allclose(syn[:, 2:4, 2:4], distorted[:, 2:4, 2:4], atol=1e-7)
