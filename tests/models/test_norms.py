import pytest
import torch

from finpercep.models import RewardModel
from finpercep.models.norms import convolution, fold_norms, freeze_norms, scale_output

ENCODER = {"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True}


@pytest.fixture
def trained():
    """A model in training whose normalizations have seen two batches."""
    torch.manual_seed(0)
    model = RewardModel(ENCODER, {"width": 8, "norm": True}).train()
    for _ in range(2):
        model(torch.rand(4, 3, 32, 32))
    return model


def norms(model):
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_folding_keeps_what_evaluation_gives(trained):
    images = torch.rand(2, 3, 40, 48)
    before = trained.double().eval()(images.double())
    assert len(norms(trained)) == 7  # stem, two a block, one on the way down, the decoder
    after = trained.fold_norms()(images.double())
    assert not norms(trained)
    assert torch.allclose(before.score, after.score, atol=1e-12)
    assert torch.allclose(before.map, after.map, atol=1e-12)
    assert before.map.std() > 0


def test_a_saved_training_model_is_folded_when_loaded_for_use(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert not norms(loaded)
    assert "norm" not in loaded.config["encoder"]
    assert len(norms(RewardModel.from_pretrained(tmp_path, fold=False))) == 7
    loaded.save_pretrained(tmp_path / "folded")
    again = RewardModel.from_pretrained(tmp_path / "folded")
    assert again.fingerprint == loaded.fingerprint
    images = torch.rand(3, 3, 32, 32)
    alone, together = loaded.train()(images[:1]).score, loaded.train()(images).score[:1]
    assert torch.allclose(alone, together, atol=1e-6)


def test_frozen_norms_do_not_move(trained):
    freeze_norms(trained)
    before = [n.running_mean.clone() for n in norms(trained)]
    trained(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(a, n.running_mean) for a, n in zip(before, norms(trained), strict=True))
    trained.train()(torch.rand(4, 3, 32, 32))
    assert not torch.equal(before[0], norms(trained)[0].running_mean)


@pytest.mark.parametrize("norm", [False, True])
def test_scaled_output(norm):
    torch.manual_seed(0)
    layer = convolution(3, 4, 3, norm=norm)
    x = torch.rand(2, 3, 8, 8)
    before = layer(x)
    scale_output(layer, 0.5)
    assert torch.allclose(layer(x), 0.5 * before, atol=1e-6)
    assert before.abs().max() > 0.1


def test_folding_without_normalizations_changes_nothing():
    layer = convolution(3, 4, 3, norm=False)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    fold_norms(layer)
    assert all(torch.equal(state[k], v) for k, v in layer.state_dict().items())
