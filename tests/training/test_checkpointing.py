import pytest
import torch

from finpercep.models import RewardModel
from finpercep.models.evaluation_view import evaluation_view
from finpercep.training.checkpointing import checkpoint_layers
from tests.models.conftest import VIT


def gradients(model, images):
    model.zero_grad()
    output = model(images)
    (output.score.sum() + output.map.mean()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_the_same_and_layers_run_twice():
    torch.manual_seed(0)
    model = RewardModel(VIT, {"width": 8}).train()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, names = gradients(model, images), list(model.state_dict())
    runs = []
    model.encoder.layers[1].layer_norm1.register_forward_hook(lambda *_: runs.append(1))
    checkpoint_layers(model.encoder)
    found = gradients(model, images)
    assert len(runs) == 2  # forward, and again for the backward pass
    assert list(model.state_dict()) == names
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    runs.clear()
    evaluation_view(model)(images).score.sum().backward()
    assert len(runs) == 1  # in evaluation nothing is checkpointed


def test_other_encoders_are_refused(small_model):
    with pytest.raises(ValueError, match=r"^checkpointing: expected a vision transformer as encoder, got ConvEncoder$"):
        checkpoint_layers(small_model.encoder)
