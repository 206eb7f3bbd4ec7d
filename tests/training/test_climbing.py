import pytest
import torch

from finpercep.data.features.filter_bank import FilterBank
from finpercep.models import RewardModel
from finpercep.training.climbing import ClimbConfig, climb_images, climb_loss, climbed_target


@pytest.fixture(scope="module")
def model():
    return RewardModel.from_pretrained("finpercep-tiny", fold=False).train()


@pytest.fixture
def images(make_photo):
    return torch.stack([make_photo(64, 64, seed=i) for i in range(3)]).mul(255).round().div(255)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_climbing_raises_the_score_within_its_reach(model, images, smooth):
    config = ClimbConfig(climb_steps=(4, 4), climb_reach=(8.0, 8.0), climb_smooth=smooth)
    climbed = climb_images(model, images, config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = model(images).score, model(climbed).score
    assert (after > before).all()
    assert (climbed - images).abs().max() <= 8.6 / 255  # what is rounded may be half a level further
    assert torch.equal((climbed * 255).round() / 255, climbed)
    assert climbed.min() >= 0
    assert climbed.max() <= 1


def test_climbing_leaves_no_gradient_and_no_mode_behind(model, images):
    climb_images(model, images, ClimbConfig(), torch.Generator().manual_seed(0))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_seed_climbs_alike(model, images):
    first, second, other = (
        climb_images(model, images, ClimbConfig(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
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


def test_climb_loss_is_what_was_won():
    assert climb_loss(torch.tensor([0.2, 0.5]), torch.tensor([0.6, 0.1])).item() == pytest.approx(0.2)
