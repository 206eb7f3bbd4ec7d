"""The stem's kernel against PyTorch's operators, at every SIMD level, on memory that starts as NaN."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finpercep.models import conv_encoder
from finpercep.models.conv_encoder import EnergyStem
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


@pytest.fixture
def plain(monkeypatch):
    """The stem by PyTorch's operators, in the type of its input."""

    def run(stem, images):
        with monkeypatch.context() as patch:
            patch.setattr(conv_encoder, "takes", lambda *_: False)
            return stem(images)

    return run


@kernel
@pytest.mark.parametrize("size", [(4, 4), (4, 96), (8, 12), (36, 52), (100, 4), (132, 260)])
def test_value(stem, plain, size):
    images = torch.stack([synthetic_photo(*size, seed=1), torch.rand(3, *size), torch.zeros(3, *size)])
    made, exact = stem(images), plain(copy.deepcopy(stem).double(), images.double())
    rounding = (plain(stem, images) - exact).abs().max()
    assert made.shape == exact.shape
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert (made - exact).abs().max() <= 3 * rounding + 1e-6


@kernel
def test_every_energy_by_itself(stem, plain):
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
    together = stem(images)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(stem(images[3:4]), together[3:4])
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


def test_who_differentiates_gets_the_definition(stem, plain, monkeypatch):
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    wanted = plain(stem, images)
    operator = "finpercep.models.conv_encoder.torch.ops.finpercep.energy_stem"
    monkeypatch.setattr(operator, lambda *_: pytest.fail("the kernel has no gradient"))
    assert torch.equal(stem(images), wanted)
    assert torch.autograd.grad(stem(images).sum(), images)[0].abs().sum() > 0
    assert stem.requires_grad_(True)(images.detach()).requires_grad


def test_counts_the_operations_of_the_definition(stem, plain):
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


def test_hostile_arguments(cpp):  # noqa: F811
    answers = fuzz(torch.ops.finpercep.energy_stem, given, 40)
    assert not [answer for answer in answers if not is_plain(answer)]
    assert 0 < answers.count("") < 40  # values pass, sizes and types do not
