import pytest
import torch

from finpercep.data.masks.kinds import MASK_KINDS, open_mask_kind, parse_masks
from finpercep.data.masks.maker import MaskMaker
from finpercep.data.masks.segments import join_segments
from finpercep.data.masks.shapes import RANDOM, SHAPES, ShapeKind, cut, random_shape
from finpercep.data.masks.superpixels import SuperpixelKind
from finpercep.data.randomness import choose, integer, seed_of, seeded, uniform


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_area_is_uniform_in_its_range(kind):
    """The drawn area is met within the pixels of an outline: all kinds share one distribution."""
    shares = torch.tensor(
        [random_shape(kind, 72, 96, seeded(0, kind, i), area=(0.05, 0.35)).float().mean() for i in range(200)]
    )
    assert shares.min() >= 0.05 - 0.005
    assert shares.max() <= 0.35 + 0.02
    quantiles = shares.quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert torch.allclose(quantiles, torch.tensor([0.125, 0.2, 0.275]), atol=0.035)


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_shapes_are_seeded_and_never_empty_or_full(kind):
    first, again, other = (random_shape(kind, 30, 40, seeded(s), area=(0.1, 0.3)) for s in (1, 1, 2))
    assert first.shape == (1, 30, 40)
    assert first.dtype == torch.bool
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for size in ((1, 2), (2, 3), (8, 8)):
        for i in range(10):
            mask = random_shape(kind, *size, seeded(i), area=(0.01, 0.99))
            assert 0 < mask.sum() <= mask.numel()


def test_one_box_is_a_full_rectangle():
    for i in range(40):
        mask = random_shape("boxes", 60, 60, seeded(i), area=(0.05, 0.1))[0]
        rows, columns = mask.any(1), mask.any(0)
        if mask.sum() == rows.sum() * columns.sum():
            return
    raise AssertionError("no single box among 40 masks")


def test_cut_takes_the_highest_and_keeps_ties_together():
    field = torch.tensor([[3.0, 1, 2], [3, 0, 0]])
    assert cut(field, 1 / 3).tolist() == [[True, False, False], [True, False, False]]
    assert cut(field, 1 / 6).tolist() == [[True, False, False], [True, False, False]]
    assert cut(field, 0.99).sum() < 6
    assert cut(torch.zeros(2, 2), 0.5).sum() == 0  # flat: no shape; `random_shape` never makes one


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"mask: expected one of .*'blobs'.*got 'stars'"):
        random_shape("stars", 4, 4, seeded(0), area=(0.1, 0.2))
    with pytest.raises(ValueError, match="area: expected 0 < low"):
        random_shape("boxes", 4, 4, seeded(0), area=(0.5, 0.2))


def test_join_segments_joins_small_ones_and_respects_the_area():
    segments = torch.zeros(5, 10, 10, dtype=torch.bool)
    for i in range(4):
        segments[i, i] = True  # a tenth each
    segments[4] = True  # everything: never fits
    for i in range(10):
        mask = join_segments(segments, seeded(i), (0.15, 0.5))
        assert mask.float().mean().item() == pytest.approx(0.2)
    assert join_segments(segments[4:], seeded(0), (0.15, 0.5)) is None  # covers everything
    assert join_segments(segments[:0], seeded(0), (0.15, 0.5)) is None  # nothing was found
    assert join_segments(segments[:1], seeded(0), (0.15, 0.5)) is None  # too little


class Nothing:
    name, fingerprint = "nothing", "0"

    def prepare(self, image):
        return None

    def draw(self, prepared, image, generator, area):
        return None


def test_a_shape_takes_the_place_of_a_mask_that_is_not_there():
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    maker = MaskMaker([Nothing()], area=(0.1, 0.2), feathered=0)
    drawn = maker.draw(maker.prepare(image), image, seeded(0))
    assert drawn.kind in SHAPES
    assert 0.09 <= drawn.hard.float().mean() <= 0.25
    assert set(drawn.alpha.unique().tolist()) == {0, 255}


def test_feathered_edges_are_soft_and_their_share_is_kept():
    image = torch.zeros(3, 48, 48, dtype=torch.uint8)
    maker = MaskMaker([ShapeKind("boxes"), ShapeKind("blobs")], feathered=0.5, feather=(2, 3))
    drawn = [maker.draw([None, None], image, seeded(i)) for i in range(100)]
    soft = [d for d in drawn if d.feather]
    assert 35 <= len(soft) <= 65
    assert all(2 <= d.feather <= 3 and len(d.alpha.unique()) > 5 for d in soft)
    kinds = [d.kind for d in drawn]
    assert 35 <= kinds.count("boxes") <= 65


def test_superpixels_follow_the_photo_and_the_area(photo_u8):
    kind = SuperpixelKind(40)
    labels = kind.prepare(photo_u8)
    for i in range(10):
        mask = kind.draw(labels, photo_u8, seeded(i), (0.1, 0.3))
        assert 0.1 <= mask.float().mean() <= 0.3
        inside = mask[0]
        assert not set(labels[inside].tolist()) & set(labels[~inside].tolist())  # whole superpixels
    assert kind.draw(labels, photo_u8, seeded(0), (0.0001, 0.0002)) is None


def test_parse_masks():
    assert parse_masks(["boxes", "sam:/x/sam.pth"]) == [("boxes", ""), ("sam", "/x/sam.pth")]
    assert open_mask_kind("strokes", "").name == "strokes"
    assert {RANDOM, *SHAPES} <= MASK_KINDS.keys()
    for bad in (["sam"], ["circles"], [], ["boxes:3"]):
        with pytest.raises(ValueError, match="mask: expected"):
            parse_masks(bad)


def test_seeds_are_fixed_and_separate():
    assert seed_of(0, "mask", 1) == seed_of(0, "mask", 1) != seed_of(0, "mask", 2)
    assert seed_of(1, "a") != seed_of(0, "a")
    assert seed_of(0, "photo") == 7912142131111072295
    assert {choose("ab", seeded(i)) for i in range(20)} == {"a", "b"}
    assert {integer(1, 3, seeded(i)) for i in range(40)} == {1, 2, 3}
    assert 2 <= uniform(2, 3, seeded(0)) < 3
