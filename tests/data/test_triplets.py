import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from finpercep.data import triplets
from finpercep.data.features.filter_bank import FilterBank
from finpercep.data.loading import load_scenes
from finpercep.data.randomness import stream
from finpercep.data.targets import SCALE, fault_target
from finpercep.data.triplets import Triplet, TripletConfig, Triplets
from tests.data.conftest import write_scenes

AS_IT_IS = {"compressed": 0.0, "softened": 0.0, "grainy": 0.0, "dimmed": 0.0}


@pytest.fixture
def scenes(tmp_path):
    return load_scenes(write_scenes(tmp_path, 3), "train")


def test_triplet_is_a_function_of_seed_and_index(scenes):
    first, second = (Triplets(scenes, TripletConfig(crop=48), seed=1) for _ in range(2))
    for index in (5, 0, 7):
        for a, b in zip(first[index], second[index], strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(first[0].gt, Triplets(scenes, TripletConfig(crop=48), seed=2)[0].gt)
    assert not torch.equal(first[0].gt, first[3].gt)


def test_the_target_is_that_of_its_settings(scenes):
    """Same images, M_gt by pixels alone: nothing else weighs, and a larger scale asks for less."""
    usual, pixels, faint = (
        Triplets(scenes, TripletConfig(crop=48, **more, **AS_IT_IS))[3]
        for more in ({}, {"features": "none"}, {"target_alpha": 1.0, "target_scale": 0.16})
    )
    assert torch.equal(usual.sr, pixels.sr)
    difference = (usual.gt - usual.sr).abs().mean(0, keepdim=True)
    assert torch.allclose(pixels.target_sr, (difference / SCALE).clamp(0, 1), atol=1e-5)
    assert torch.allclose(faint.target_sr, (difference / 0.16).clamp(0, 1), atol=1e-5)
    assert (usual.target_sr - pixels.target_sr).abs().mean() > 0.02


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target_alpha": 1.5}, r"target_alpha: expected a share in \[0, 1\], got 1.5"),
        ({"target_scale": 0.0}, "target_scale: expected > 0, got 0.0"),
        ({"features": "filtres"}, "features: expected filters, .*, got 'filtres'"),
    ],
)
def test_a_target_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TripletConfig(**wrong)


def test_syn_lies_between_photo_and_distorted(scenes):
    triplets = Triplets(scenes, TripletConfig(crop=48, feathered=0, **AS_IT_IS))
    for index in range(12):
        t = triplets[index]
        from_photo = (t.syn == t.gt).all(0)
        from_sr = ((t.syn - t.sr).abs() < 1e-6).all(0)
        assert (from_photo | from_sr).all()
        assert from_photo.any()
        assert from_sr.any()
        assert t.target_syn.shape == (1, 48, 48)
        # Where the swap took nothing in reach of the features, nothing is asked for.
        assert t.target_syn.mean() <= t.target_sr.mean() + 1e-6
        assert t.target_sr.min() >= 0
        assert t.target_sr.max() <= 1
        assert min(image.min() for image in t[:3]) >= 0
        assert max(image.max() for image in t[:3]) <= 1
    edges = Triplets(scenes, TripletConfig(crop=48, feathered=1, **AS_IT_IS))[0]
    between = ((edges.syn - edges.gt).abs() > 0.01).any(0) & ((edges.syn - edges.sr).abs() > 0.01).any(0)
    assert between.any()


def test_crops_are_turned_in_all_ways_and_alike():
    """Eight orientations of a picture that is as large as the crop; of another image the same ones."""
    image = torch.arange(3 * 16 * 16).view(3, 16, 16).remainder(251).to(torch.uint8)
    every = {tuple(t.flatten().tolist()) for t in (*_turned(image), *_turned(image.flip(2)))}
    seen = set()
    for number in range(80):
        prepare, side = triplets._frame(image, TripletConfig(crop=16, resized=0.0), stream(0, number, 1), name="a")
        assert side == 16
        torch.testing.assert_close(prepare(255 - image), 1 - prepare(image))
        seen.add(tuple((255 * prepare(image)).round().to(torch.uint8).flatten().tolist()))
    assert len(every) == 8
    assert seen == every


def _turned(image):
    return [image.rot90(turns, (1, 2)) for turns in range(4)]


def test_all_three_images_go_through_jpeg_at_one_quality(scenes, monkeypatch):
    drawn = []
    monkeypatch.setattr(triplets, "jpeg", lambda image, quality: drawn.append(quality) or image)
    made = Triplets(scenes, TripletConfig(crop=48, **AS_IT_IS | {"compressed": 1.0}, jpeg_range=(90, 92)))
    for index in range(12):
        made[index]
    assert len(drawn) == 36
    assert all(len(set(drawn[i : i + 3])) == 1 for i in range(0, 36, 3))
    assert set(drawn) == {90, 91}  # the end is left out


def test_a_stored_sample_keeps_each_image_and_its_own_target():
    """Flat images of four grays and flat targets; nothing is drawn but place, orientation and, for images, color."""
    levels = {"gt": 128, "syn": 130, "sr": 132, "target_syn": 51, "target_sr": 102}
    sizes = {name: (1 if "target" in name else 3, 40, 40) for name in levels}
    stored = {name: torch.full(sizes[name], level, dtype=torch.uint8) for name, level in levels.items()}
    config = TripletConfig(crop=32, gray=0.0, resized=0.0, **AS_IT_IS)
    for resized in (0.0, 1.0):
        given = dataclasses.replace(config, resized=resized)
        made = triplets.stored_triplet(SimpleNamespace(**stored, row={"photo": "a"}), given, stream(0, 1, 1))
        assert [part.shape for part in made] == [(3, 32, 32)] * 3 + [(1, 32, 32)] * 2 + [()]
        assert made.aligned
        assert made.gt.mean() < made.syn.mean() < made.sr.mean()
        torch.testing.assert_close(made.target_syn, torch.full((1, 32, 32), 0.2))
        torch.testing.assert_close(made.target_sr, torch.full((1, 32, 32), 0.4))


def test_pairs_that_a_camera_took_twice_are_aligned(scenes):
    settings = {"synthetic": 0.0, "features": "none", "defocused": 0.0, **AS_IT_IS}
    apart = [dataclasses.replace(scene, aligned=False) for scene in scenes]
    plain, taken = (Triplets(given, TripletConfig(crop=48, **settings))[3] for given in (scenes, apart))
    assert torch.equal(plain.sr, taken.sr)
    torch.testing.assert_close(taken.target_sr, fault_target(plain.gt[None], plain.sr[None], None, aligned=False)[0])
    assert taken.target_sr.mean() < 0.9 * plain.target_sr.mean()


def test_a_softened_triplet_keeps_its_target_and_loses_fine_detail(scenes):
    plain, soft = (
        Triplets(scenes, TripletConfig(crop=48, soften_range=(1.0, 1.0), **AS_IT_IS | {"softened": share}))[1]
        for share in (0.0, 1.0)
    )
    assert torch.equal(plain.target_syn, soft.target_syn)
    for a, b in zip(plain[:3], soft[:3], strict=True):  # all three of sample 1 have detail to lose
        assert b.diff(dim=-1).abs().mean() < 0.8 * a.diff(dim=-1).abs().mean()
        assert b.mean().item() == pytest.approx(a.mean().item(), abs=0.01)


def test_a_grainy_triplet_has_the_same_grain_in_all_images(scenes):
    plain, grainy = (
        Triplets(scenes, TripletConfig(crop=48, grain_range=(5.0, 5.0), **AS_IT_IS | {"grainy": share}))[4]
        for share in (0.0, 1.0)
    )
    assert torch.equal(plain.target_sr, grainy.target_sr)
    inside = ((plain.gt > 0.1) & (plain.gt < 0.9) & (plain.sr > 0.1) & (plain.sr < 0.9)).all(0)
    grain = (grainy.gt - plain.gt)[:, inside]
    torch.testing.assert_close(grain, (grainy.sr - plain.sr)[:, inside], atol=1e-6, rtol=0)
    assert grain.std().item() == pytest.approx(5 / 255, rel=0.1)


def test_a_dimmed_triplet_is_darker_by_one_factor(scenes):
    plain, dim = (
        Triplets(scenes, TripletConfig(crop=48, dim_range=(0.25, 0.25), **AS_IT_IS | {"dimmed": share}))[4]
        for share in (0.0, 1.0)
    )
    for a, b in zip(plain[:3], dim[:3], strict=True):
        torch.testing.assert_close(b, 0.25 * a)
    assert torch.equal(plain.target_syn, dim.target_syn)


def test_a_triplet_out_of_focus_in_part_has_no_fault_there(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path, 1, size=(200, 200)), "train")
    plain, blurred = (
        Triplets(scenes, TripletConfig(crop=160, resized=0, defocused=share, **AS_IT_IS))[4] for share in (0.0, 1.0)
    )
    change = (blurred.gt - plain.gt).abs().mean(0)
    assert change.max() > 0.01
    assert (change < 1e-6).any()  # in part
    assert blurred.gt.diff(dim=-1).abs().mean() < plain.gt.diff(dim=-1).abs().mean()
    expected = fault_target(blurred.gt[None], torch.stack([blurred.syn, blurred.sr]), FilterBank())
    assert torch.equal(blurred.target_syn, expected[0])
    assert torch.equal(blurred.target_sr, expected[1])


def test_a_triplet_without_color_is_gray_in_all_images(scenes):
    colored, gray = (Triplets(scenes, TripletConfig(crop=48, gray=share, **AS_IT_IS))[4] for share in (0, 1))
    assert (colored.gt - colored.gt.mean(0)).abs().max() > 0.01
    for image in gray[:3]:
        assert (image - image.mean(0)).abs().max() < 1e-6


def test_an_enlarged_triplet_shows_less_of_the_photo(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path, 1, size=(200, 200)), "train")
    plain, enlarged = (
        Triplets(
            scenes,
            TripletConfig(crop=160, resized=share, resize_range=(1.4, 1.4), defocused=0, **AS_IT_IS),
        )[4]
        for share in (0.0, 1.0)
    )
    assert enlarged.gt.shape == plain.gt.shape == (3, 160, 160)
    assert enlarged.gt.diff(dim=-1).abs().mean() < 0.9 * plain.gt.diff(dim=-1).abs().mean()


def test_every_epoch_sees_every_scene(scenes, monkeypatch):
    triplets, seen = Triplets(scenes, TripletConfig(crop=48)), []
    pair = Triplets._pair
    monkeypatch.setattr(Triplets, "_pair", lambda self, s, g: seen.append(s.id) or pair(self, s, g))
    for index in range(18):
        triplets[index]
    epochs = [seen[start : start + 3] for start in range(0, 18, 3)]
    assert all(sorted(epoch) == sorted(s.id for s in scenes) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1  # each in an order of its own


def test_photos_alone_train_on_synthetic_sources(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path, 1, sources=()), "train")
    assert Triplets(scenes, TripletConfig(crop=32, synthetic=1.0))[0].gt.shape == (3, 32, 32)
    with pytest.raises(ValueError, match="scene0 has no super-resolved image"):
        Triplets(scenes, TripletConfig(crop=32))


def test_small_photo_is_named(scenes):
    with pytest.raises(ValueError, match=r"gt\.png: 72x64 is smaller than the crop of 100"):
        Triplets(scenes, TripletConfig(crop=100))[0]


def test_loader_collates_triplets(scenes):
    batch = next(iter(DataLoader(Triplets(scenes, TripletConfig(crop=32)), batch_size=2, sampler=range(2, 6))))
    assert isinstance(batch, Triplet)
    assert batch.target_sr.shape == (2, 1, 32, 32)
    assert batch.aligned.tolist() == [True, True]
    apart = [dataclasses.replace(scene, aligned=False) for scene in scenes]
    assert not Triplets(apart, TripletConfig(crop=32))[0].aligned


def test_a_camera_softens_the_photo_before_anything_is_made_of_it(scenes):
    """What softness hides is no fault; and what is made of a soft photo may be crisper than it."""
    soft = {"camera_blur": (2.0, 2.0), "camera_grain": (0.5, 0.5), "defocused": 0.0, "gray": 0.0, **AS_IT_IS}
    plain, taken = (
        Triplets(scenes, TripletConfig(crop=48, quilted=1.0, camera=share, **soft))[4] for share in (1e-9, 1.0)
    )
    for a, b in zip(plain[:3], taken[:3], strict=True):
        assert b.diff(dim=-1).abs().mean() < 0.7 * a.diff(dim=-1).abs().mean()
    assert taken.target_sr.mean() < 0.5 * plain.target_sr.mean()
    fault = fault_target(taken.gt[None], torch.stack([taken.syn, taken.sr]), FilterBank())
    assert torch.equal(fault[1], taken.target_sr)  # M_gt is of what is seen


def test_a_camera_sees_a_real_result_as_it_sees_the_photo(scenes):
    soft = {"camera_blur": (2.0, 2.0), "camera_grain": (0.5, 0.5), "defocused": 0.0, "gray": 0.0, **AS_IT_IS}
    plain, taken = (
        Triplets(scenes, TripletConfig(crop=48, synthetic=0.0, camera=share, **soft))[4] for share in (1e-9, 1.0)
    )
    for a, b in zip(plain[:3], taken[:3], strict=True):
        assert b.diff(dim=-1).abs().mean() < 0.8 * a.diff(dim=-1).abs().mean()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_quilted_triplets(scenes, share, monkeypatch):
    drawn = []
    monkeypatch.setattr(triplets, "synthetic_source", lambda name, image, generator: drawn.append(name) or image)
    made = Triplets(scenes, TripletConfig(crop=48, synthetic=0.0, quilted=share))
    for index in range(3):
        made[index]
    assert drawn == ["quilted"] * (3 if share else 0)


def test_grain_of_the_result_alone_is_part_of_the_fault(scenes):
    settings = (TripletConfig(crop=48, noisy=share, grain_range=(8.0, 8.0), resized=0) for share in (1e-9, 1.0))
    plain, noisy = (Triplets(scenes, config)._pair(scenes[0], stream(0, 1, 1)) for config in settings)
    assert torch.equal(plain[0], noisy[0])
    assert 5 / 255 < (noisy[1] - plain[1]).std() < 9 / 255
    strong = TripletConfig(crop=48, noisy=1.0, grain_range=(200.0, 200.0), resized=0)
    result = Triplets(scenes, strong)._pair(scenes[0], stream(0, 1, 1))[1]
    assert (result.min(), result.max()) == (0, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"noisy": 7.0}, r"noisy: expected a share in \[0, 1\], got 7.0"),
        ({"soften_range": (0.0, 0.0)}, r"soften_range: expected 0 < low <= high"),
        ({"resize_range": (1.2, 0.5)}, r"resize_range: expected 0 < low <= high"),
        ({"jpeg_range": (90, 90)}, r"jpeg_range: expected low < high, whose end is left out, got \(90, 90\)"),
        ({"crop": 8}, "crop: expected at least 16, got 8"),
    ],
)
def test_settings_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        TripletConfig(**wrong)
