import math

import pytest
import torch

from finpercep.data.features.filter_bank import FilterBank
from finpercep.models import RewardModel
from finpercep.runs.ranks import Ranks
from finpercep.training.climbers import Climbers
from finpercep.training.climbing import ClimbConfig, _direction, climb_by, climbed_target, draw_climbs, score_logit


@pytest.fixture(scope="module")
def model():
    return RewardModel.from_pretrained("finpercep-tiny", fold=False).train()


@pytest.fixture
def images(make_photo):
    return torch.stack([make_photo(64, 64, seed=i) for i in range(3)]).mul(255).round().div(255)


def climbed_by(model, images, config, seed):
    return climb_by(model, images, draw_climbs(config, len(images), torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_climbing_raises_the_score_within_its_reach(model, images, smooth):
    config = ClimbConfig(climb_steps=(4, 4), climb_rate=(0.7, 0.7), climb_smooth=smooth)
    climbed = climbed_by(model, images, config, 0)
    with torch.no_grad():
        before, after = model(images).score, model(climbed).score
    assert (after > before).all()
    reach = 4 * 0.7 * (3 if smooth else 1) / 255
    assert reach / 2 < (climbed - images).abs().max() <= reach + 1e-6
    assert climbed.min() >= 0
    assert climbed.max() <= 1


def test_climbing_leaves_no_gradient_and_no_mode_behind(model, images):
    climbed_by(model, images, ClimbConfig(), 0)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_seed_climbs_alike(model, images):
    first, second, other = (climbed_by(model, images, ClimbConfig(), seed) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_target_keeps_old_faults_and_adds_new_ones(images):
    old = torch.zeros(3, 1, 64, 64)
    old[..., :8] = 0.7
    after = images.clone()
    after[..., 32:, 32:] = after[..., 32:, 32:].flip(-1)
    target = climbed_target(images, after, old, FilterBank())
    assert (target >= old).all()
    assert target[..., 40:56, 40:56].mean() > 0.2
    assert torch.equal(climbed_target(images, images, old, FilterBank()), old)
    gray = torch.full((1, 3, 8, 8), 0.4)
    found = climbed_target(gray, gray + 0.1, torch.zeros(1, 1, 8, 8), None, scale=0.2)
    torch.testing.assert_close(found, torch.full((1, 1, 8, 8), 0.5))


@pytest.fixture
def step(images):
    """What `Climbers.climb` is given of a step: images, targets and weights of one triplet."""
    return images, torch.stack([torch.full((1, 64, 64), 0.1 * i) for i in range(3)]), torch.ones(3, 1, 1, 1)


def test_climbers_go_on_from_where_they_are(model, step):
    config = ClimbConfig(1.0, climb_steps=(3, 3), climb_rate=(0.5, 0.5), climb_rounds=10**9, climb_smooth=0.0)
    climbers = Climbers(config, 1, Ranks(torch.device("cpu")))
    assert climbers.size == 4
    seen = []
    for number in range(12):
        climbed = climbers.climb(model, *step, torch.Generator().manual_seed(number))
        assert climbed.rows.tolist() == [0]
        assert any(torch.equal(climbed.before[0], image) for image in step[0])
        assert torch.equal((climbed.after * 255).round() / 255, climbed.after)
        seen.append((climbed.after - climbed.before).abs().mean().item())
    assert max(seen[6:]) > 1.6 * seen[0]  # after three rounds, not one
    with torch.no_grad():
        assert model(climbers.pool[1]).score.mean() > model(climbers.pool[0]).score.mean() + 0.02


def test_a_pool_begins_with_images_of_all_kinds(model, step):
    """Four climbers of one triplet: its photo, its implanted photo, its result, and the photo again."""
    images, target, weight = step
    climbers = Climbers(ClimbConfig(climbed=1.0), 1, Ranks(torch.device("cpu")))
    climbers.climb(model, images, target, weight, torch.Generator().manual_seed(0))
    assert torch.equal(climbers.pool[0], images[[0, 1, 2, 0]])
    assert torch.equal(climbers.pool[2], target[[0, 1, 2, 0]])


def test_the_share_is_rounded_and_is_an_image_at_least():
    assert Climbers(ClimbConfig(climbed=0.25), 7, Ranks(torch.device("cpu"))).count == 2  # of 1.75
    assert Climbers(ClimbConfig(), 7, Ranks(torch.device("cpu"))).count == 0
    with pytest.raises(ValueError, match=r"^climbed: expected a share of the 7 triplets that is an image, got 0.05$"):
        Climbers(ClimbConfig(climbed=0.05), 7, Ranks(torch.device("cpu")))


def test_climbers_start_anew(model, step):
    climbers = Climbers(ClimbConfig(climbed=1.0, climb_rounds=1, climb_steps=(1, 1)), 1, Ranks(torch.device("cpu")))
    climbers.climb(model, *step, torch.Generator().manual_seed(0))
    other = tuple(part.flip(0) * 0.5 for part in step)
    climbed = climbers.climb(model, *other, torch.Generator().manual_seed(1))
    row = next(i for i in range(3) if torch.equal(climbed.before[0], other[0][i]))
    assert torch.equal(climbed.target[0], other[1][row])
    assert climbed.weight.tolist() == [[[[0.5]]]]


def test_a_pool_that_was_saved_goes_on_alike(model, step):
    config, ranks = ClimbConfig(climbed=1.0, climb_rounds=3), Ranks(torch.device("cpu"))
    first, second = Climbers(config, 1, ranks), Climbers(config, 1, ranks)
    assert first.state() == []
    for number in range(2):
        first.climb(model, *step, torch.Generator().manual_seed(number))
    second.load([part.clone() for part in first.state()], torch.device("cpu"))
    for number in range(2, 5):
        ours, theirs = (c.climb(model, *step, torch.Generator().manual_seed(number)) for c in (first, second))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_saturated_score_is_climbed_by_its_logit():
    logit = torch.tensor([15.0, -20.0, -60.0], requires_grad=True)
    score_logit(logit.sigmoid()).sum().backward()
    assert logit.grad.tolist() == pytest.approx([1, 1, 1], rel=0.2)


def test_smooth_steps_are_blurred_and_as_long_for_each_image():
    """A point's gradient spreads by its Gaussian; a gradient of 0 moves nothing."""
    gradient = torch.zeros(3, 3, 17, 17)
    gradient[0, :, 8, 8], gradient[1, :, 8, 8] = 2.0, -1e-6
    found = _direction(gradient, 1.5)
    assert found[:, 0, 8, 8].tolist() == [1, -1, 0]
    assert found[0, 0, 8, 10].item() == pytest.approx(math.exp(-4 / (2 * 1.5**2)), abs=1e-5)
    assert found[0, 0, 12, 8].item() == pytest.approx(math.exp(-16 / (2 * 1.5**2)), abs=1e-5)
    assert not found[2].any()
    assert torch.equal(_direction(gradient, 0.0), gradient.sign())
    sigmas = [draw_climbs(ClimbConfig(climb_smooth=1.0), 1, torch.Generator().manual_seed(i)).sigma for i in range(50)]
    assert 0.7 <= min(sigmas) < 1.2
    assert 3.5 < max(sigmas) <= 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"climb_rate": (0.0, 0.5)},
        {"climb_steps": (3, 2)},
        {"climbed": -0.1},
        {"climbed": math.nan},
        {"climbed": math.inf},
        {"climb_rounds": 0},
        {"climb_networks": 1.1},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClimbConfig(**wrong)
