import pytest
import torch

from finpercep.data.alignment import aligned_photo
from finpercep.data.features.filter_bank import FilterBank
from finpercep.data.image_ops import gaussian_blur
from finpercep.data.targets import fault_target


@pytest.fixture
def scene(make_photo):
    return gaussian_blur(make_photo(96, 96, seed=3), 0.8)


def moved(image, pixels):
    """The image, shifted to the left by a fraction of a pixel."""
    return (1 - pixels) * image + pixels * image.roll(-1, 2)


def test_a_shift_and_a_tint_are_no_fault(scene):
    other = (moved(scene, 0.6) + 3 / 255)[None]
    inner = (..., slice(8, -8), slice(8, -8))
    plain = fault_target(scene[None], other, FilterBank())[inner]
    tolerant = fault_target(scene[None], other, FilterBank(), aligned=False)[inner]
    assert plain.mean() > 0.05
    assert tolerant.mean() < plain.mean() / 3


def test_a_fault_stays_one(scene):
    other = scene.clone()
    other[:, 30:60, 30:60] = other[:, 30:60, 30:60].mean((1, 2), keepdim=True)
    plain, tolerant = (fault_target(scene[None], other[None], FilterBank(), aligned=a)[0, 0] for a in (True, False))
    assert tolerant[34:56, 34:56].mean() > 0.8 * plain[34:56, 34:56].mean() > 0.4


def test_where_nothing_differs_the_photo_is_itself(scene):
    batch = torch.stack([scene, scene])
    assert torch.equal(aligned_photo(scene, batch), batch)


def test_levels_are_taken_away_and_no_more(scene):
    other = (scene + 0.1)[None]
    aligned = aligned_photo(scene, other, shift=0, levels=0.04)
    torch.testing.assert_close(other - aligned, torch.full_like(other, 0.06))
    usual = aligned_photo(scene, other, shift=0)
    torch.testing.assert_close(other - usual, torch.full_like(other, 0.1 - 4 / 255))


def test_each_of_several_versions_has_its_own_photo(scene):
    """Shifts of half a pixel and of a whole one, alone and together; what is moved by two stays apart."""
    versions = torch.stack([moved(scene, pixels) for pixels in (0.5, 1.0, 2.0)])
    both = fault_target(scene[None], versions, None, aligned=False)
    for version, target in zip(versions, both, strict=True):
        assert torch.equal(fault_target(scene[None], version[None], None, aligned=False)[0], target)
    mirrored = torch.stack([scene.flip(-1), scene])
    apart = fault_target(mirrored, torch.stack([versions[0].flip(-1), versions[2]]), None, aligned=False)
    for photo, version, target in zip(mirrored, (versions[0].flip(-1), versions[2]), apart, strict=True):
        assert torch.equal(fault_target(photo[None], version[None], None, aligned=False)[0], target)
    inner = both[..., 8:-8, 8:-8].mean((1, 2, 3))
    assert inner[1] < 1e-4
    assert inner[0] < 0.02 < 0.1 < inner[2]


def test_it_is_made_where_the_photo_is():
    """The device without values tells: a grid on the CPU would be refused."""
    photo = torch.rand(3, 24, 32, device="meta")
    assert aligned_photo(photo, photo[None]).is_meta


def test_rows_of_which_some_are_aligned(scene: torch.Tensor) -> None:
    """Of one photo and of one each; rows have the target that they have alone."""
    versions = torch.stack([scene.roll(1, -1), (scene + 0.05).clamp(0, 1), scene.roll(1, -2)])
    rows = torch.tensor([False, True, False])
    for photos in (scene[None], torch.stack([scene] * 3)):
        found = fault_target(photos, versions, None, aligned=rows)
        for version, same, target in zip(versions, rows.tolist(), found, strict=True):
            assert torch.equal(fault_target(scene[None], version[None], None, aligned=same)[0], target)
    assert torch.equal(
        fault_target(scene[None], versions, None, aligned=torch.ones(3, dtype=torch.bool)),
        fault_target(scene[None], versions, None),
    )
