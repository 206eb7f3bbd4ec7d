"""The 3x3 convolutions against PyTorch's, at every SIMD level, on memory that starts as NaN."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finpercep.models import RewardModel, conv3x3
from finpercep.models.conv3x3 import conv3x3_relu
from finpercep.models.norms import convolution
from tests.ops.conftest import cpp, poisoned, simd  # noqa: F401
from tests.ops.direct import fuzz, is_plain

kernel = pytest.mark.usefixtures("simd", "poisoned")


def layer_of(inputs, outputs, seed=0):
    torch.manual_seed(seed)
    layer = convolution(inputs, outputs, 3, norm=False)
    nn.init.normal_(layer[0].bias)
    return layer.requires_grad_(False)


def defined(layer, x, residual=None):
    """The definition in float64."""
    y = copy.deepcopy(layer).double()(x.double())
    return (y if residual is None else y + residual.double()).relu()


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the images that went to the kernel."""
    seen, forward = [], conv3x3._forward
    monkeypatch.setattr(conv3x3, "_forward", lambda x, *rest: seen.append(tuple(x.shape)) or forward(x, *rest))
    return seen


@kernel
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (4, 4), (5, 9), (16, 24), (33, 18), (3, 130)])
@pytest.mark.parametrize("channels", [(16, 16), (48, 48), (32, 80), (96, 64)])
@pytest.mark.parametrize("added", [False, True])
def test_value(size, channels, added, calls):
    layer, (inputs, outputs) = layer_of(*channels), channels
    x = torch.randn(3, inputs, *size)
    residual = torch.randn(3, outputs, *size) if added else None
    made, exact = conv3x3_relu(layer, x, residual), defined(layer, x, residual)
    assert len(calls) == 1
    assert made.shape == exact.shape
    assert made.is_contiguous(memory_format=torch.channels_last)
    # Of the sums that are rounded, some are ten times the results.
    assert (made - exact).abs().max() <= 2e-5 * exact.abs().max().clamp_min(1)


@kernel
def test_views(calls):
    layer = layer_of(16, 32)
    whole = torch.randn(2, 40, 21, 34)
    x, residual = whole[:, 3:19, 1::2, 4:], torch.randn(32, 2, 30, 10).permute(1, 0, 3, 2)
    assert torch.equal(conv3x3_relu(layer, x, residual), conv3x3_relu(layer, x.clone(), residual.clone()))
    assert len(calls) == 2


@kernel
def test_gradients():
    layer = layer_of(32, 48)
    x, residual = torch.randn(2, 32, 13, 10), torch.randn(2, 48, 13, 10)
    up = torch.randn(2, 48, 13, 10)
    given = [t.clone().requires_grad_() for t in (x, residual)]
    (conv3x3_relu(layer, *given) * up).sum().backward()
    exact = [t.double().requires_grad_() for t in (x, residual)]
    (defined(layer, *exact) * up).sum().backward()
    for ours, theirs in zip(given, exact, strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 2e-5 * theirs.grad.abs().max()


def test_gradients_of_weights():
    layer, x, residual, up = layer_of(32, 16), *(torch.randn(2, c, 9, 10) for c in (32, 16, 16))
    exact = copy.deepcopy(layer).double().requires_grad_(True)
    (conv3x3_relu(layer.requires_grad_(True), x, residual) * up).sum().backward()
    ((exact(x.double()) + residual).relu() * up).sum().backward()
    for ours, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 2e-5 * theirs.grad.abs().max()


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_of_gradients(trained):
    layer, x, up = layer_of(16, 16), torch.randn(1, 16, 6, 6), torch.randn(1, 16, 6, 6)

    def second(convolve, layer, x):
        given = [x.requires_grad_(), *(layer.requires_grad_(trained).parameters() if trained else ())]
        first = torch.autograd.grad((convolve(layer, x).pow(2) * up).sum(), given, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), given)

    exact = copy.deepcopy(layer).double()
    pairs = zip(
        second(conv3x3_relu, layer, x.clone()), second(lambda m, x: m(x).relu(), exact, x.double()), strict=True
    )
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


@kernel
def test_an_image_gives_the_same_bits_in_any_batch_and_with_any_threads():
    layer, x = layer_of(48, 48), torch.randn(5, 48, 37, 22)
    together, threads = conv3x3_relu(layer, x), torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(conv3x3_relu(layer, x[2:3]), together[2:3])
    finally:
        torch.set_num_threads(threads)


def test_not_a_number_and_infinity_stay():
    x = torch.zeros(1, 16, 12, 12)
    x[0, 3, 2, 2] = float("nan")
    made = conv3x3_relu(layer_of(16, 16), x)
    assert made[0, :, 1:4, 1:4].isnan().all()
    assert made[0, :, 8:, 8:].isfinite().all()


@pytest.mark.parametrize("change", [lambda w: w.mul_(2), lambda w: w.data.mul_(2), lambda w: w.data.flip(0)])
def test_changed_weights_count(change):
    layer, x = layer_of(16, 16), torch.randn(1, 16, 8, 8)
    conv3x3_relu(layer, x)
    weight = change(layer[0].weight)
    layer[0].weight = nn.Parameter(weight, requires_grad=False)
    assert torch.allclose(conv3x3_relu(layer, x), defined(layer, x).float(), atol=1e-5)


def test_who_normalizes_or_has_another_type_gets_the_definition(calls):
    x = torch.randn(1, 16, 8, 8)
    for layer in (
        convolution(16, 16, 3, norm=True),
        layer_of(16, 16).double(),
        layer_of(16, 20),
    ):
        wanted = layer(x.to(layer[0].weight.dtype)).relu()
        assert torch.equal(conv3x3_relu(layer, x.to(layer[0].weight.dtype)), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv3x3_relu(layer_of(16, 16), x).dtype == torch.bfloat16
    assert not calls


def test_forward_mode_and_vmap_get_the_definition(calls):
    layer, x = layer_of(16, 16), torch.randn(2, 1, 16, 8, 8)
    assert torch.allclose(
        torch.func.vmap(lambda one: conv3x3_relu(layer, one))(x)[1], defined(layer, x[1]).float(), atol=1e-5
    )
    value, slope = torch.func.jvp(lambda one: conv3x3_relu(layer, one), (x[0],), (x[1],))
    assert slope.abs().sum() > 0
    assert value.shape == slope.shape
    assert not calls


def test_a_model_scores_the_same(calls, monkeypatch):
    model = RewardModel.from_pretrained("finpercep-tiny").eval().requires_grad_(False)
    image = torch.rand(1, 3, 72, 100)

    def answer():
        x = image.clone().requires_grad_()
        out = model(x)
        out.score.sum().backward()
        return out.score.detach(), out.map.detach(), x.grad

    score, degradation, gradient = answer()
    assert len(calls) == 7
    monkeypatch.setattr(conv3x3, "takes", lambda *_: False)
    plain_score, plain_map, plain_gradient = answer()
    assert len(calls) == 7
    assert torch.allclose(score, plain_score, atol=1e-6)
    assert torch.allclose(degradation, plain_map, atol=3e-6)
    assert (gradient - plain_gradient).abs().max() <= 1e-4 * plain_gradient.abs().max()


def test_counts_the_operations_of_the_definition(monkeypatch):
    def counted():
        with FlopCounterMode(display=False) as counter:
            conv3x3_relu(layer, x)
        return counter.get_total_flops()

    layer, x = layer_of(16, 32), torch.randn(2, 16, 9, 7)
    ours = counted()
    monkeypatch.setattr(conv3x3, "takes", lambda *_: False)
    assert ours == counted() > 0


def conv3x3_given(generator):
    batch, height, width = torch.randint(1, 9, (3,), generator=generator).tolist()
    return {
        "images": torch.rand(batch, height, width, 16, generator=generator),
        "weight": torch.rand(2, 36, 16, 16, generator=generator),
        "bias": torch.rand(32, generator=generator),
        "residual": torch.rand(batch, height, width, 32, generator=generator),
        "relu": True,
    }


def weight_given(generator):
    return {"weight": torch.rand(32, 16, 3, 3, generator=generator)}


@pytest.mark.parametrize(("operator", "make"), [("conv3x3", conv3x3_given), ("conv3x3_weight", weight_given)])
def test_hostile_arguments(cpp, operator, make):  # noqa: F811
    answers = fuzz(getattr(torch.ops.finpercep, operator), make, 40)
    assert not [answer for answer in answers if not is_plain(answer)]
    assert 0 < answers.count("") < 40  # values pass, sizes and types do not


def test_what_is_kept_of_weights_goes_with_them(cpp):  # noqa: F811
    layer, x = layer_of(16, 32), torch.randn(1, 16, 8, 8)
    conv3x3_relu(layer, x)
    address = layer[0].weight.data_ptr()
    assert (address, "forward") in conv3x3._kept
    layer[0].weight.data = layer[0].weight.data.clone()
    conv3x3_relu(layer, x)
    assert (address, "forward") not in conv3x3._kept
    assert (layer[0].weight.data_ptr(), "forward") in conv3x3._kept
