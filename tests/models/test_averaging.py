"""Means of weights: values, shares, and what has none."""

import pytest
import torch

from finpercep.models import RewardModel, average_weights


def model(seed, **decoder):
    torch.manual_seed(seed)
    return RewardModel({"type": "conv"}, {"width": 8, **decoder})


def test_mean_of_weights():
    a, b = model(0), model(1)
    before = {name: t.clone() for name, t in a.state_dict().items()}
    mean, mixed = average_weights([a, b]), average_weights([a, b], [0.25, 0.75])
    assert mean.config == a.config
    for name, tensor in mean.state_dict().items():
        pair = a.state_dict()[name].double(), b.state_dict()[name].double()
        assert torch.equal(tensor, ((pair[0] + pair[1]) / 2).float()), name
        torch.testing.assert_close(mixed.state_dict()[name], (0.25 * pair[0] + 0.75 * pair[1]).float())
        assert torch.equal(a.state_dict()[name], before[name])  # the models stay
    images = torch.rand(1, 3, 64, 64)
    alone = average_weights([a])
    assert torch.equal(alone(images).score, a(images).score)
    assert torch.equal(average_weights([a, a, a])(images).map, a(images).map)


def test_half_precision_is_averaged_in_float64():
    a, b = model(0).half(), model(1).half()
    mean = average_weights([a, b, b])
    weight = "head.mlp.0.weight"  # those of a convolutional encoder are float32
    expected = (a.state_dict()[weight].double() + 2 * b.state_dict()[weight].double()) / 3
    assert torch.equal(mean.state_dict()[weight], expected.half())


def test_what_has_no_mean():
    with pytest.raises(ValueError, match="at least one, got none"):
        average_weights([])
    with pytest.raises(ValueError, match=r"weights: expected 2 that add up to 1, got \[1.0\]"):
        average_weights([model(0), model(1)], [1.0])
    with pytest.raises(ValueError, match="add up to 1"):
        average_weights([model(0), model(1)], [0.5, 0.6])
    with pytest.raises(ValueError, match=r"models\[1\]: expected the first one's configuration"):
        average_weights([model(0), model(1, width=16)])
    with pytest.raises(ValueError, match=r"models\[1\]: expected weights of the first one's names and shapes"):
        average_weights([torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)])
