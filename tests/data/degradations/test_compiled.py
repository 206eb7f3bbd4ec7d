"""The C++ stages of the degradations against PyTorch's, at every SIMD level, on memory that starts as NaN."""

import pytest
import torch

from finpercep.data.degradations.apply import degrade
from finpercep.data.degradations.blur_kernels import filter_each
from finpercep.data.degradations.compiled import Flag, Integer, compiled
from finpercep.data.degradations.diff_jpeg import jpeg_each
from finpercep.data.degradations.noise import add_noise
from finpercep.data.degradations.ragged import MODES, Ragged, resize_each
from finpercep.data.degradations.random_bits import keys
from tests.conftest import synthetic_photo
from tests.ops.conftest import cpp, poisoned, simd  # noqa: F401

pytestmark = pytest.mark.usefixtures("simd", "poisoned")


@pytest.fixture
def both(monkeypatch):
    """Calls a stage compiled, then plain."""

    def run(stage, *arguments, **options):
        if compiled("degrade_filter", torch.rand(1)) is None:
            pytest.skip("the compiled extension is older than these sources")
        made = stage(*arguments, **options)
        with monkeypatch.context() as patch:
            patch.setattr("finpercep.data.degradations.compiled.has_cpp", lambda operator: False)
            return made, stage(*arguments, **options)

    return run


def ragged(*sizes, side=None):
    """Photos on one canvas, the last pixel going on beyond each."""
    rows, columns = side or (max(h for h, _ in sizes), max(w for _, w in sizes))
    pixels = torch.empty(len(sizes), 3, rows, columns)
    for i, (height, width) in enumerate(sizes):
        photo = synthetic_photo(height, width, seed=i)
        y, x = torch.arange(rows).clamp_max(height - 1), torch.arange(columns).clamp_max(width - 1)
        pixels[i] = photo[:, y][:, :, x]
    return Ragged(pixels, *(torch.tensor(column) for column in zip(*sizes, strict=True)))


@pytest.mark.parametrize("size", [(3, 5), (4, 16), (7, 33), (40, 70), (65, 131)])
@pytest.mark.parametrize("side", [1, 7, 21])
def test_filter(both, size, side):
    generator = torch.Generator().manual_seed(side)
    kernels = torch.rand(4, side, side, generator=generator) / side**2
    kernels[1] = 0
    kernels[1, side // 2, side // 2] = 1
    kernels[2, 0], kernels[2, :, -1] = 0, 0  # less than the whole
    padded = torch.rand(4, 3, size[0] + side - 1, size[1] + side - 1, generator=generator)
    made, plain = both(filter_each, padded, kernels)
    assert made.shape == plain.shape == (4, 3, *size)
    assert torch.allclose(made, plain, atol=3e-6)


@pytest.mark.parametrize(("border", "mirror"), [(0, False), (10, True), (3, False)])
def test_resize(both, border, mirror):
    """All modes; enlarged, shrunk, as it is, to one pixel, from one pixel."""
    sizes = [(20, 31), (64, 40), (5, 7), (1, 9), (33, 33), (64, 64), (17, 64), (50, 2), (40, 41)]
    images = ragged(*sizes)
    height = torch.tensor([40, 11, 5, 6, 1, 9, 70, 33, 39])
    width = torch.tensor([17, 80, 7, 9, 1, 64, 64, 5, 41])
    for shift in range(3):
        mode = (torch.arange(len(sizes)) + shift) % 3
        made, plain = both(resize_each, images, height, width, mode, border=border, mirror=mirror)
        assert made.pixels.shape == plain.pixels.shape
        assert torch.allclose(made.pixels, plain.pixels, atol=5e-6)
        assert torch.equal(made.height, height)


def test_noise(both):
    images = ragged((20, 31), (64, 40), (5, 7), (64, 64), (3, 64), (1, 1), (40, 33), (40, 33))
    gaussian = torch.tensor([True, True, False, False, False, True, False, True])
    grey = torch.tensor([True, False, True, False, False, False, True, True])
    strength = torch.tensor([5.0, 25.0, 0.5, 2.0, 0.05, 9.0, 3.0, 0.0])
    made, plain = both(add_noise, images, gaussian, strength, grey, keys(range(8), 1))
    different = (made.pixels - plain.pixels).abs() > 1e-6
    assert not bool(different[gaussian].any())
    assert not bool(different[~gaussian & ~grey].any())
    assert different.float().mean() < 1e-3  # a grey level half way between two may fall to the other side
    assert torch.equal(made.pixels[7], images.pixels[7].clamp(0, 1))  # strength 0
    assert (made.pixels[2] - images.pixels[2]).abs().mean() > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (23, 50), (64, 97)])
def test_jpeg(both, size):
    """Equal, but where a level is half way between two steps, as in flat blocks whose mean is a multiple of 1/8.

    One such level of chroma colors its whole block of 16 x 16, so of four images of one block one may differ.
    """
    photos = torch.stack([synthetic_photo(*size, seed=s) for s in range(4)])
    made, plain = both(jpeg_each, photos, torch.tensor([8.0, 30.0, 75.5, 100.0]))
    different = (made - plain).abs() * 255
    shares = (different > 0.01).float().mean((1, 2, 3))
    assert shares.sort().values[:-1].mean() < 0.02
    if size != (16, 16):
        assert shares.mean() < 0.02
    assert different.max() < 60
    assert torch.equal((made * 255).round() / 255, made)


def test_the_whole(both):
    """Each alone: in a batch, plain JPEG sees a little of what fills the canvas beyond a small sample.

    Where a level falls to the other side of a half, all noise after it is another draw. That happens to float32 against
    float64 as well, so the plain route's own distance from float64 is the measure.
    """
    photos = torch.stack([synthetic_photo(64, 96, seed=s) for s in range(12)])
    together, drawn = degrade(photos, list(range(12)))
    differences, own = [], []
    for i in range(12):
        (made, drawn_made), (plain, drawn_plain) = both(degrade, photos[i : i + 1], [i])
        exact, _ = degrade(photos[i : i + 1].double(), [i])
        assert drawn_made == drawn_plain == drawn[i : i + 1]
        assert torch.equal(made[0], together[i])  # compiled, nothing of the batch reaches a sample
        differences.append(float((made - plain).abs().mean()) * 255)
        own.append(float((plain - exact).abs().mean()) * 255)
    assert sorted(differences)[5] < 0.01
    assert sorted(differences)[9] < max(0.1, sorted(own)[9])
    assert max(differences) < 12


def test_gradients_and_other_types_take_the_plain_route():
    images = torch.rand(1, 3, 8, 8)
    assert compiled("degrade_jpeg", images.double()) is None
    assert compiled("degrade_jpeg", images.requires_grad_()) is None


def test_bad_arguments(both):
    operators = torch.ops.finpercep
    both(jpeg_each, torch.rand(1, 3, 8, 8), torch.tensor([50.0]))  # skips where it is not built
    one = torch.tensor([8])
    with pytest.raises(RuntimeError, match="height: expected sizes within the canvas"):
        operators.degrade_resize(torch.rand(1, 3, 8, 8), one + 1, one, one, one, one * 0, 0, False)
    with pytest.raises(RuntimeError, match="mode: expected 0, 1 or 2"):
        operators.degrade_resize(torch.rand(1, 3, 8, 8), one, one, one, one, one, 0, False)
    with pytest.raises(RuntimeError, match="padded: expected contiguous float32"):
        operators.degrade_filter(torch.rand(1, 3, 9, 8).transpose(2, 3), torch.rand(1, 3, 3))
    with pytest.raises(RuntimeError, match="kernels: expected"):
        operators.degrade_filter(torch.rand(1, 3, 8, 8), torch.rand(1, 4, 4))
    kernel, table, integers = torch.rand(1, 3, 3), torch.rand(1), torch.full((1, 12), 8)
    integers[:, 8:] = 1
    arguments = [kernel, kernel, kernel, integers, *[table] * 4, one, *[table] * 3]
    with pytest.raises(RuntimeError, match="flags: expected contiguous bool"):
        operators.degrade_samples(torch.rand(1, 3, 8, 8), *arguments)


def test_columns_have_the_same_names_in_cpp(cpp):  # noqa: F811
    from finpercep import _C

    shared = _C.enumerations()
    for name, columns in (("drawn_integer", Integer), ("drawn_flag", Flag)):
        assert {column.name.lower(): column.value for column in columns} == shared[name]
    assert {mode: i for i, mode in enumerate(MODES)} == shared["resize_mode"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("gray", [True, False])
def test_poisoned_pixels_make_no_index(bad, gaussian, gray):
    """The kernel itself, without `degrade`'s check in front of it: no crash, and clean samples stay as they are."""
    clean = ragged((20, 31), (20, 31))
    poisoned_pixels = clean.pixels.clone()
    poisoned_pixels[0, :, 3:5] = bad
    options = torch.tensor([gaussian] * 2), torch.tensor([9.0, 3.0]), torch.tensor([gray] * 2), keys([1, 2], 1)
    made = add_noise(clean._replace(pixels=poisoned_pixels), *options).pixels
    assert torch.equal(made[1], add_noise(clean, *options).pixels[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_degrade_names_the_sample_that_is_not_finite(bad):
    images = torch.rand(4, 3, 64, 64)
    images[2, 0, 5, 5] = bad
    with pytest.raises(ValueError, match="images: expected finite values, sample 2"):
        degrade(images, [0, 1, 2, 3])


def test_degrade_refuses_other_types_and_ranges_by_name():
    images = torch.rand(1, 3, 64, 64)
    for dtype in (torch.uint8, torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match=f"images: expected a float32 or float64 .*{str(dtype)[6:]}"):
            degrade(images.to(dtype), [0])
    degrade((images - 0.0005).clamp_min(-0.0005), [0])  # rounding
    for wrong in (images * 2 - 1, images * 255, images.clamp_min(0.5) + 0.51, images.clamp_max(0.5) - 0.01):
        with pytest.raises(ValueError, match=r"images: expected values in \[0, 1\]"):
            degrade(wrong, [0])
