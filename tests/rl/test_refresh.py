"""The reward learns the generator's failures, keeps its level, and says what changed."""

from __future__ import annotations

import copy

import pytest
import torch

from finpercep.data.features.filter_bank import FilterBank
from finpercep.data.targets import fault_target
from finpercep.models import RewardOutput
from finpercep.rl import refresh as refresh_module
from finpercep.rl.generators import SRTiny
from finpercep.rl.photos import Crops, load_pairs
from finpercep.rl.refresh import Refresh, RefreshConfig, implant
from finpercep.rl.rollout import results
from finpercep.rl.scores import as_file
from tests.rl.test_trainer import config  # noqa: F401
from tests.rl.toy import Red

CPU = torch.device("cpu")
ALIGNED = torch.tensor([True, True])
NOTHING = (torch.zeros(1, 3, 32, 32),) * 2 + (ALIGNED[:1],)


@pytest.fixture
def made(photo_set, small_model):
    """A refresh of a small random model on the fixture's photos; a generator that is bicubic."""
    generator = SRTiny((16, 24), 1)
    generator.keep_reference()
    crops = Crops(load_pairs([photo_set], "train", 4), 32, degraded=0.0)
    photo = crops.batch(7, 3).photo
    fixed = (photo, (photo * 0.5 + 0.2), torch.ones(3, dtype=torch.bool))
    model = copy.deepcopy(small_model).requires_grad_(False)
    options = RefreshConfig(every=2, steps=3, batch=2, lr=1e-3, synthetic=0.5)
    return Refresh(options, {"small": model}, crops, fixed, 2, 0), generator


def test_implanted(make_photo):
    photo = torch.stack([make_photo(32, 32, seed=1), make_photo(32, 32, seed=2)])
    result = photo.flip(0)
    faults = implant(photo, result, ALIGNED, FilterBank(), 0)
    swapped = (faults.syn != photo).any(1)
    assert ((faults.syn == result) | (faults.syn == photo)).all()
    assert 0.01 < swapped.float().mean() < 0.9
    assert faults.target_syn[0, 0][~swapped[0]].mean() < faults.target_syn[0, 0][swapped[0]].mean()
    torch.testing.assert_close(faults.target_result, fault_target(photo, result, FilterBank()))
    torch.testing.assert_close(faults.target_syn, fault_target(photo, faults.syn, FilterBank()))
    again = implant(photo, result, ALIGNED, FilterBank(), 0)
    assert torch.equal(again.syn, faults.syn)
    assert not torch.equal(implant(photo, result, ALIGNED, FilterBank(), 1).syn, faults.syn)


def test_what_a_camera_moved_is_no_fault(make_photo):
    photo = torch.stack([make_photo(64, 64, seed=1)] * 2)
    moved = 0.6 * photo + 0.4 * photo.roll(1, -1)
    faults = implant(photo, moved, torch.tensor([True, False]), FilterBank(), 0)
    for distorted, target in ((faults.result, faults.target_result), (faults.syn, faults.target_syn)):
        strict, lenient = (fault_target(photo, distorted, FilterBank(), aligned=same) for same in (True, False))
        assert torch.equal(target[0], strict[0])
        assert torch.equal(target[1], lenient[1])
        assert lenient[1].mean() < 0.9 * strict[1].mean()


def test_results_of_camera_pairs_are_learned_as_such(camera_set, small_model, monkeypatch):
    """Which rows are handed on as moved: of p0, by its own low-resolution image and the generator."""
    seen = []
    real = refresh_module.implant
    monkeypatch.setattr(refresh_module, "implant", lambda *given: seen.append(given) or real(*given))
    generator = SRTiny((16, 24), 1)
    for degraded, synthetic in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (1.0, 0.0)):
        crops = Crops(load_pairs([camera_set], "train", 4), 32, degraded=degraded)
        options = RefreshConfig(every=1, synthetic=synthetic, batch=12)
        refresh = Refresh(options, {"small": small_model}, crops, NOTHING, 2, 0)
        seen.clear()
        refresh._faults(generator, CPU, 0)
        (_, made, aligned, *_), crops = seen[0], refresh.crops
        batch = crops.batch(0, 12)
        of_camera = torch.tensor([crops._pair(i).name.endswith("p0/lr.png, gt.png") for i in range(12)])
        assert of_camera.any()
        own = torch.tensor([not crops._is_degraded(crops._pair(i), i) for i in range(12)])
        by_generator = (made == as_file(results(generator, batch, 2, 0, "refresh", 0))).flatten(1).all(1)
        assert torch.equal(~aligned, of_camera & own & by_generator)
        assert degraded == 1 or not aligned.all()


def test_a_refresh(made):
    refresh, generator = made
    model, before = refresh.models["small"], refresh.models["small"].fingerprint
    figures = refresh.run("small", generator, CPU)
    assert refresh.versions == {"small": 1}
    assert model.fingerprint != before
    assert refresh.anchors["small"].fingerprint == before
    assert not any(p.requires_grad for p in model.parameters())
    assert figures["refresh/photo"] == pytest.approx(refresh.measure(model, CPU)["photo"])
    assert figures["refresh/photo_before"] == pytest.approx(refresh.measure(refresh.anchors["small"], CPU)["photo"])
    assert {"refresh/map_error", "refresh/photo_above_fault", "refresh/fault_above_result"} <= figures.keys()


def test_it_lowers_its_loss_and_keeps_the_level(made):
    """On the fixed faults: many steps bring the map nearer, while photos keep their scores."""
    refresh, generator = made
    object.__setattr__(refresh.config, "steps", 40)
    figures = refresh.run("small", generator, CPU)
    assert figures["refresh/map_error"] < figures["refresh/map_error_before"]
    assert abs(figures["refresh/photo"] - figures["refresh/photo_before"]) < 0.1


def test_state(made):
    refresh, generator = made
    state = refresh.state()
    assert state["weights"] == {}
    refresh.run("small", generator, CPU)
    state = {**refresh.state(), "weights": copy.deepcopy(refresh.state()["weights"])}
    expected = refresh.models["small"].fingerprint
    refresh.run("small", generator, CPU)
    assert refresh.models["small"].fingerprint != expected
    refresh.load_state(state)
    assert refresh.models["small"].fingerprint == expected
    assert refresh.versions == {"small": 1}


def test_faults_are_the_generator_s_or_built_in_and_others_in_each_update(made, monkeypatch):
    refresh, generator = made
    real, numbers = refresh._faults, []
    monkeypatch.setattr(refresh, "_faults", lambda *given: numbers.append(given[2]) or real(*given))
    for _ in range(2):
        refresh.run("small", generator, CPU)
    assert numbers == list(range(6))
    found = []
    for share in (0.0, 1.0):
        object.__setattr__(refresh.config, "synthetic", share)
        found.append([real(generator, CPU, number) for number in range(2)])
    own, built_in = found
    assert torch.equal(own[0].photo, built_in[0].photo)
    assert not torch.equal(own[0].result, built_in[0].result)
    given = refresh.crops.batch(0, 2)
    expected = results(generator, given, 2, 0, "refresh", 0)
    torch.testing.assert_close(own[0].result, (255 * expected.clamp(0, 1)).round() / 255)
    regions = [(faults.syn != faults.photo).any(1) for faults in own]
    assert not torch.equal(*regions)


def test_measures_by_hand(made):
    """Scores of photos, implanted photos and results, and a map of a half everywhere."""
    refresh, _ = made
    scores = {"photo": [0.9, 0.5, 0.3], "syn": [0.5, 0.6, 0.2], "result": [0.4, 0.3, 0.25]}

    def model(images):
        (name,) = (name for name in scores if torch.equal(images, getattr(refresh.fixed, name)))
        return RewardOutput(torch.tensor(scores[name]), torch.full_like(images[:, :1], 0.5))

    assert refresh.measure(model, CPU) == pytest.approx(
        {
            "photo": 1.7 / 3,
            "result": 0.95 / 3,
            "photo_above_fault": 2 / 3,
            "fault_above_result": 2 / 3,
            "map_error": float((0.5 - refresh.fixed.target_syn).abs().mean()),
        }
    )


def test_when(made):
    refresh, _ = made
    assert [refresh.due(done) for done in range(5)] == [False, False, True, False, True]


def test_photos_are_needed(made):
    refresh, _ = made
    refresh.crops.photos = False
    with pytest.raises(ValueError, match="refresh: expected photos beside low-resolution images, got none"):
        Refresh(refresh.config, refresh.models, refresh.crops, NOTHING, 2, 0)


def test_only_reward_models(made):
    refresh, _ = made
    with pytest.raises(ValueError, match="expected a RewardModel to refresh, got Red \\(red\\)"):
        Refresh(refresh.config, {"red": Red()}, refresh.crops, NOTHING, 2, 0)


def test_of_an_encoder_with_adapters_these_alone_are_refreshed(made):
    refresh, generator = made
    grown = refresh.models["small"].expand(adapter_rank=2).eval().requires_grad_(False)
    refresh.models["small"], refresh.anchors["small"] = grown, copy.deepcopy(grown)
    before = copy.deepcopy(grown.state_dict())
    refresh.run("small", generator, CPU)
    changed = {name for name, tensor in grown.state_dict().items() if not torch.equal(tensor, before[name])}
    adapters = {name for name in before if ".down." in name or ".up." in name}
    assert {name for name in changed if name.startswith("encoder.")} <= adapters
    assert changed & adapters
    assert any(name.startswith("decoder.") for name in changed)
    assert not any(parameter.requires_grad for parameter in grown.parameters())
