"""When a kernel takes the place of PyTorch's layers."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

from finpercep.models import RewardModel
from finpercep.models.cpu_kernels import alone, is_differentiated, takes
from finpercep.models.inverted_residual import InvertedResidual, SameConv
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


class Graphs:
    """A backend of torch.compile that runs what it is given, forward and backward, and keeps its operators' names."""

    def __init__(self):
        self.operators = []

    def __call__(self, module, inputs):
        return aot_autograd(fw_compiler=self.keep, bw_compiler=self.keep)(module, inputs)

    def keep(self, module, _):
        self.operators.append(sorted(n.target.name() for n in module.graph.nodes if "finpercep" in str(n.target)))
        return make_boxed_func(module.forward)


@pytest.fixture
def forgotten():
    """What was compiled before, or is compiled here, does not make others' sizes dynamic."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("forgotten")
def test_a_compiled_model_keeps_its_kernels(cpp):  # noqa: F811
    torch.manual_seed(0)
    model = RewardModel({"type": "conv", "channels": [16], "depths": [1]}, {"width": 16}).eval().requires_grad_(False)
    graphs = Graphs()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    for size in ((32, 24), (20, 36)):
        x, y = (torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
        expected, out = model(x), compiled(y)
        for made in (expected, out):
            (made.score.sum() + made.map.mean()).backward()
        assert (expected.score - out.score).abs().max() <= 1e-6
        assert (x.grad - y.grad).abs().max() <= 1e-5 * x.grad.abs().max()
    forward, backward = graphs.operators  # and no more: one compilation for all sizes
    assert forward == [*["finpercep::conv3x3_layer"] * 3, "finpercep::energy_stem_layer"]
    assert backward == [*["finpercep::conv3x3_layer_backward"] * 3, "finpercep::energy_stem_layer_backward"]


@pytest.mark.usefixtures("forgotten")
@torch.no_grad()
def test_a_compiled_block_keeps_its_kernel(cpp):  # noqa: F811
    block, graphs = InvertedResidual(16, 24, 3, 2, 6), Graphs()
    compiled = torch.compile(block, fullgraph=True, backend=graphs)
    assert torch.equal(compiled(X), block(X))
    assert graphs.operators == [["finpercep::inverted_residual_layer"]]


@pytest.mark.parametrize("name", ["finpercep-tiny", "finpercep-small"])
def test_an_exported_model_has_none_of_them(cpp, name):  # noqa: F811
    model = RewardModel.from_pretrained(name).requires_grad_(False)
    program = torch.export.export(model, (torch.rand(1, 3, 64, 64),))
    assert "_layer" not in str(program.graph)


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
