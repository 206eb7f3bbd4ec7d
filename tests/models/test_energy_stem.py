"""The stem's kernel against PyTorch's operators, at every SIMD level, on memory that starts as NaN."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finpercep.models.energy_stem import EnergyStem
from tests.conftest import synthetic_photo
from tests.ops.conftest import cpp, poisoned, simd  # noqa: F401
from tests.ops.direct import fuzz, is_plain

kernel = pytest.mark.usefixtures("simd", "poisoned")


@pytest.fixture
def stem():
    torch.manual_seed(0)
    made = EnergyStem(48)
    nn.init.normal_(made.mix[0].bias)
    return made.requires_grad_(False)


def plain(stem, images):
    return stem.defined(images)


@kernel
@pytest.mark.parametrize("size", [(4, 4), (4, 96), (8, 12), (36, 52), (100, 4), (132, 260)])
def test_value(stem, size):
    images = torch.stack([synthetic_photo(*size, seed=1), torch.rand(3, *size), torch.zeros(3, *size)])
    made, exact = stem(images), plain(copy.deepcopy(stem).double(), images.double())
    rounding = (plain(stem, images) - exact).abs().max()
    assert made.shape == exact.shape
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert (made - exact).abs().max() <= 3 * rounding + 1e-6


@kernel
def test_every_energy_by_itself(stem):
    """One result for each input of the 1x1 convolution: none is in another's place."""
    inputs = stem.mix[0].weight.shape[1]
    with torch.no_grad():
        stem.mix[0].weight.copy_(torch.eye(inputs)[:, :, None, None])
        stem.mix[0].bias.fill_(3.0)  # what is below 0 would be lost
    images = synthetic_photo(64, 88, seed=2)[None]
    made, wanted = stem(images), plain(stem, images)
    assert inputs == 48
    assert (made > 0).float().mean() > 0.9
    assert torch.allclose(made, wanted, atol=2e-5)


@kernel
def test_views_and_layouts(stem):
    images = torch.rand(2, 3, 40, 48)
    wanted = stem(images)
    assert torch.equal(stem(images.contiguous(memory_format=torch.channels_last)), wanted)
    assert torch.equal(stem(torch.rand(2, 4, 50, 96)[:, 1:, 5:45, ::2].copy_(images)), wanted)


@kernel
def test_an_image_gives_the_same_bits_in_any_batch_and_with_any_threads(stem):
    images, threads = torch.rand(5, 3, 60, 44), torch.get_num_threads()

    def slope(images):
        images = images.clone().requires_grad_()
        return torch.autograd.grad(stem(images).square().sum(), images)[0]

    together, slopes = stem(images), slope(images)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(stem(images[3:4]), together[3:4])
            assert torch.equal(slope(images[3:4]), slopes[3:4])
    finally:
        torch.set_num_threads(threads)


@kernel
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_stays(stem, bad):
    images = torch.rand(1, 3, 32, 32)
    images[0, 1, 9, 9] = bad
    made = stem(images)
    assert made[0, :, 2, 2].isnan().all()
    assert made[0, :, 6:, 6:].isfinite().all()


@kernel
@pytest.mark.parametrize("size", [(4, 4), (4, 40), (36, 8), (44, 68)])
def test_gradient(stem, size):
    images = torch.stack([synthetic_photo(*size, seed=3), torch.rand(3, *size), torch.full((3, *size), 0.5)])
    up = torch.randn(3, 48, size[0] // 4, size[1] // 4)

    def slope(run, images):
        images = images.clone().requires_grad_()
        return torch.autograd.grad((run(images) * up).sum(), images)[0]

    made = slope(stem, images)
    exact = slope(copy.deepcopy(stem).double().defined, images.double())
    rounding = (slope(stem.defined, images) - exact).abs().max()
    assert (made - exact).abs().max() <= 3 * rounding + 1e-6 * exact.abs().max()


@kernel
def test_what_is_flat_has_no_gradient_by_its_energies(stem):
    """|x| has none at 0, where rounding must not choose a sign."""
    with torch.no_grad():
        stem.mix[0].weight[:, -3:] = 0
        stem.mix[0].bias.fill_(3.0)
    images = torch.tensor([0.1, 0.7, 0.3])[None, :, None, None].repeat(1, 1, 24, 32).requires_grad_()
    stem(images).sum().backward()
    assert images.grad.abs().max() == 0


@kernel
@pytest.mark.parametrize("defined", [False, True], ids=["kernel", "definition"])
def test_the_gradient_at_8_bit_pixels_is_that_of_exact_arithmetic(stem, defined):
    """Where a derivative is exactly 0, as of gray edges and patterns, float32 finds what rounding leaves of it."""
    photo = (synthetic_photo(96, 128, seed=4) * 24).round() / 255 + 100 / 255
    up = torch.randn(1, 48, 24, 32)

    def slope(run, images):
        images = images.clone().requires_grad_()
        return torch.autograd.grad((run(images) * up).sum(), images)[0].double()

    exact = slope(copy.deepcopy(stem).double().defined, photo[None].double())
    made = slope(stem.defined if defined else stem, photo[None])
    assert (made - exact).norm() < 1e-4 * exact.norm()


def test_gradients_of_gradients(stem):
    images, up = torch.rand(1, 3, 12, 16), torch.randn(1, 48, 3, 4)

    def second(run, images):
        images = images.clone().requires_grad_()
        (first,) = torch.autograd.grad((run(images).pow(2) * up).sum(), images, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), images)[0]

    ours, theirs = second(stem, images), second(copy.deepcopy(stem).double().defined, images.double())
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_who_trains_gets_the_definition(stem, monkeypatch):
    images = torch.rand(1, 3, 16, 16)
    wanted = plain(stem, images)
    monkeypatch.setattr("finpercep.models.energy_stem._forward", lambda *_: pytest.fail("weights have no gradient"))
    made = stem.requires_grad_(True)(images)
    assert torch.equal(made, wanted)
    made.sum().backward()
    assert stem.mix[0].weight.grad.abs().sum() > 0


def test_counts_the_operations_of_the_definition(stem):
    def counted(run):
        with FlopCounterMode(display=False) as counter:
            run(images)
        return counter.get_total_flops()

    images = torch.rand(2, 3, 24, 36)
    assert counted(stem) == counted(lambda images: plain(stem, images)) > 0


def given(generator):
    batch, height, width = torch.randint(1, 9, (3,), generator=generator).tolist()
    return {
        "images": torch.rand(batch, 3, 4 * height, 4 * width, generator=generator),
        "weight": torch.rand(32, 48, generator=generator),
        "bias": torch.rand(32, generator=generator),
        "floor": 0.002,
        "center": -4.5,
    }


def backward_given(generator):
    images = given(generator)["images"]
    batch, _, height, width = images.shape
    return {"grad": torch.rand(batch, height // 4, width // 4, 48, generator=generator), "images": images, "floor": 0.1}


@pytest.mark.parametrize(("operator", "make"), [("energy_stem", given), ("energy_stem_backward", backward_given)])
def test_hostile_arguments(cpp, operator, make):  # noqa: F811
    answers = fuzz(getattr(torch.ops.finpercep, operator), make, 40)
    assert not [answer for answer in answers if not is_plain(answer)]
    assert 0 < answers.count("") < 40  # values pass, sizes and types do not
