"""When a kernel takes the place of PyTorch's layers."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from finpercep.models import RewardModel
from finpercep.models.cpu_kernels import alone, is_differentiated, takes
from finpercep.models.inverted_residual import SameConv
from finpercep.models.norms import convolution
from tests.ops.conftest import cpp  # noqa: F401

X = torch.rand(1, 16, 8, 8)


@pytest.fixture
def conv(cpp):  # noqa: F811
    return nn.Conv2d(16, 16, 3)


def test_float32_on_a_cpu(conv):
    assert takes("conv3x3", X, conv)
    assert not takes("no_such_operator", X, conv)
    assert not takes("conv3x3", X.double(), conv)
    assert not takes("conv3x3", X, conv.double())
    assert not takes("conv3x3", X.to("meta"), conv.float())


def test_a_layer_that_is_replaced_watched_or_has_no_bias_runs_as_it_is(conv):
    assert not takes("conv3x3", X, nn.Sequential(conv))
    assert not takes("conv3x3", X, nn.Conv2d(16, 16, 3, bias=False))
    assert takes("inverted_residual", X, SameConv(16, 16, 3))
    assert not takes("conv3x3", X, type("Quantized", (nn.Conv2d,), {"forward": lambda self, x: x})(16, 16, 3))
    hook = conv.register_forward_hook(lambda *_: None)
    assert not takes("conv3x3", X, conv)
    hook.remove()
    assert takes("conv3x3", X, conv)


def test_autocast_and_transforms(conv):
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes("conv3x3", X, conv)
    seen = []
    torch.func.vmap(lambda x: seen.append(takes("conv3x3", x, conv)) or x)(X)
    assert seen == [False]


@pytest.mark.parametrize("name", ["finpercep-tiny", "finpercep-small"])
def test_fake_tensors_run_through_a_model(name):
    model = RewardModel.from_pretrained(name)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        out = model(torch.rand(2, 3, 64, 96))
    assert out.score.shape == (2,)
    assert out.map.shape == (2, 1, 64, 96)


def test_alone():
    assert alone(convolution(16, 32, 3, norm=False)) is not None
    assert alone(convolution(16, 32, 3, norm=True)) is None
    assert alone(convolution(16, 20, 3, norm=False)) is None
    assert alone(convolution(3, 32, 3, norm=False)) is None


@pytest.mark.parametrize("name", ["encoder.stem.mix", "encoder.stages.0.0.conv1", "encoder.stages.0.0.conv2.0"])
def test_whoever_watches_a_layer_is_called(name):
    model, seen = RewardModel.from_pretrained("finpercep-tiny").eval(), []
    model.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    assert seen == [name]


def test_weights_of_inference_mode_serve_a_gradient():
    model, images = RewardModel.from_pretrained("finpercep-tiny").eval().requires_grad_(False), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = model(images).score.clone()
    images.requires_grad_()
    score = model(images).score
    score.sum().backward()
    assert torch.equal(score.detach(), wanted)
    assert images.grad.abs().sum() > 0


def test_is_differentiated(conv):
    assert is_differentiated(X, conv)
    with torch.no_grad():
        assert not is_differentiated(X, conv)
    conv.requires_grad_(False)
    assert not is_differentiated(X, conv)
    assert is_differentiated(X.clone().requires_grad_(), conv)
