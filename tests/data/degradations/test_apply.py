"""Degradations against their definitions: kernels, resizing, noise statistics, JPEG against Pillow's."""

import math

import pytest
import torch
import torch.nn.functional as F

from finpercep.data.degradations import diff_jpeg
from finpercep.data.degradations.apply import degrade
from finpercep.data.degradations.blur_kernels import KINDS, KernelParameters, blur_kernels, filter_each, reflect
from finpercep.data.degradations.config import DegradationConfig
from finpercep.data.degradations.diff_jpeg import jpeg_each, quantization_tables
from finpercep.data.degradations.draw import draw_parameters
from finpercep.data.degradations.noise import gaussian_noise, poisson_noise
from finpercep.data.degradations.ragged import MODES, Ragged, resize_each
from finpercep.data.degradations.random_bits import hash_bits, keys, normals, uniforms
from finpercep.data.sources.synthetic import jpeg
from tests.conftest import synthetic_photo


def kernel(kind, *, size=21, sigma_x=2.0, sigma_y=1.0, rotation=0.0, beta=1.0, omega=1.0, side=21):
    values = (KINDS.index(kind), size, sigma_x, sigma_y, rotation, beta, omega)
    return blur_kernels(KernelParameters(*(torch.tensor([v]) for v in values)), side)[0].double()


def moments(k):
    axis = torch.arange(k.shape[-1]).double() - k.shape[-1] // 2
    yy = (k.sum(1) * axis**2).sum()
    xx = (k.sum(0) * axis**2).sum()
    xy = (k * axis[:, None] * axis[None]).sum()
    return yy.item(), xx.item(), xy.item()


def test_gaussian_kernels_have_the_covariance_asked_for():
    yy, xx, xy = moments(kernel("aniso", sigma_x=2.0, sigma_y=1.2, rotation=0.5))
    c, s = math.cos(0.5), math.sin(0.5)
    assert xx == pytest.approx(4 * c * c + 1.44 * s * s, rel=0.01)
    assert yy == pytest.approx(4 * s * s + 1.44 * c * c, rel=0.01)
    assert xy == pytest.approx((4 - 1.44) * s * c, rel=0.02)
    iso = moments(kernel("iso", sigma_x=1.5, sigma_y=9.0, rotation=0.7))  # sigma_y is not used
    assert iso[0] == pytest.approx(2.25, rel=0.01)
    assert iso[2] == pytest.approx(0, abs=1e-6)


def test_generalized_and_plateau_kernels_follow_their_formulas():
    for kind, value in (
        ("generalized_aniso", lambda q: math.exp(-0.5 * q)),
        ("plateau_aniso", lambda q: 1 / (1 + q)),
    ):
        k = kernel(kind, sigma_x=2.0, sigma_y=1.5, beta=0.7)
        assert k[10, 13] / k[10, 10] == pytest.approx(value((9 / 4) ** 0.7), rel=1e-5)
        assert k[12, 10] / k[10, 10] == pytest.approx(value((4 / 2.25) ** 0.7), rel=1e-5)
    assert torch.allclose(kernel("generalized_iso", beta=1.0), kernel("iso"))
    for kind in ("iso", "generalized_iso", "plateau_iso"):  # round, whatever sigma_y is
        assert torch.allclose(kernel(kind, beta=0.7), kernel(kind, sigma_y=9.0, beta=0.7).T)


def test_factors_of_zero_are_refused():
    with pytest.raises(ValueError, match=r"resize_range2: expected factors above 0, got \(0.0, 0.5\)"):
        DegradationConfig(resize_range2=(0.0, 0.5))


@pytest.mark.parametrize("kind", KINDS[:6])
def test_no_width_is_no_blur(kind):
    k = kernel(kind, sigma_x=0.0, sigma_y=0.0, beta=0.5)
    assert k[10, 10] == pytest.approx(1, abs=1e-6)
    assert kernel("aniso", sigma_x=0.0, sigma_y=0.0)[10, 10] == 1
    photo = synthetic_photo(64, 64)[None].expand(6, 3, 64, 64) * 0.5 + 0.4
    config = DegradationConfig(blur_sigma=(0.0, 0.0), blur_sigma2=(0.0, 0.0), sinc_prob=0.0, sinc_prob2=0.0)
    low, _ = degrade(photo, list(range(6)), config)
    assert (low.flatten(1).mean(1) > 0.2).all()


def test_sinc_kernel_is_a_circular_low_pass():
    """Its frequency response is near 1 below the cutoff and near 0 above it."""
    k = kernel("sinc", omega=1.2)
    response = torch.fft.fft2(F.pad(k, [0, 107, 0, 107])).abs()[0]
    omega = torch.arange(128) * 2 * math.pi / 128
    assert (response[(omega < 0.7)] - 1).abs().max() < 0.15
    assert response[(omega > 1.7) & (omega < math.pi)].max() < 0.15
    assert k[10, 12] / k[10, 10] == pytest.approx(
        (1.2 * torch.special.bessel_j1(torch.tensor(2.4)) / (4 * math.pi) / (1.44 / (4 * math.pi))).item(),
        rel=1e-4,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_sum_to_one_and_end_at_their_size(kind):
    k = kernel(kind, size=9)
    assert k.sum().item() == pytest.approx(1, abs=1e-6)
    assert k[:6].abs().max() == 0
    assert k[:, 15:].abs().max() == 0
    assert torch.allclose(k, k.flip(0, 1), atol=1e-7)


def test_filter_is_a_convolution_per_sample():
    images = torch.rand(3, 3, 20, 31, generator=torch.Generator().manual_seed(0))
    kernels = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(1))
    made = filter_each(reflect(images, 3), kernels)
    padded = F.pad(images, [3] * 4, mode="reflect")
    expected = [F.conv2d(padded[i][:, None], kernels[i][None, None])[:, 0] for i in range(3)]
    assert torch.allclose(made, torch.stack(expected), atol=1e-4)
    assert reflect(torch.rand(1, 3, 4, 5), 10).shape == (1, 3, 24, 25)


@pytest.mark.parametrize("mode", range(3))
@pytest.mark.parametrize("size", [(13, 50), (40, 9), (24, 36), (57, 61)])
def test_resize_each_is_interpolate(mode, size):
    images = torch.rand(2, 3, 24, 36, generator=torch.Generator().manual_seed(0))
    heights, widths = torch.tensor([size[0], 20]), torch.tensor([size[1], 33])
    sizes = torch.tensor([24, 24]), torch.tensor([36, 36])
    made = resize_each(Ragged(images, *sizes), heights, widths, torch.tensor([mode, 1]))
    options = {} if mode == 0 else {"align_corners": False}
    expected = F.interpolate(images[:1], size, mode=MODES[mode], **options)[0]
    assert torch.allclose(made.pixels[0, :, : size[0], : size[1]], expected, atol=2e-6)
    other = F.interpolate(images[1:], (20, 33), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(made.pixels[1, :, :20, :33], other, atol=2e-6)
    # beyond a sample, its last pixel goes on
    assert torch.equal(made.pixels[1, :, -1, :33], made.pixels[1, :, 19, :33]) or made.pixels.shape[2] == 20


def test_resize_each_reads_its_own_sample_only_and_reflects():
    """A sample on a larger canvas: what lies beyond it does not count."""
    images = torch.full((1, 3, 30, 30), 9.0)
    images[..., :10, :12] = torch.rand(1, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    ten, twelve = torch.tensor([10]), torch.tensor([12])
    made = resize_each(Ragged(images, ten, twelve), ten, twelve, torch.tensor([2]), border=4, mirror=True).pixels
    assert torch.allclose(made, F.pad(images[..., :10, :12], [4] * 4, mode="reflect"), atol=1e-6)


def test_random_bits_are_a_fixed_function():
    """The hash in plain integers; results must not change between versions or devices."""

    def reference(counter, key0, key1):
        x = counter ^ key0
        x ^= x >> 16
        x = x * 0x7FEB352D & 0xFFFFFFFF
        x ^= x >> 15
        x = (x + key1) & 0xFFFFFFFF
        x = x * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    key = keys([123, 2**62 + 7], stream=3)
    made = hash_bits(torch.arange(100, dtype=torch.int32).repeat(2, 1), key)
    for row in range(2):
        k0, k1 = (int(v) & 0xFFFFFFFF for v in key[row])
        assert [int(v) & 0xFFFFFFFF for v in made[row]] == [reference(c, k0, k1) for c in range(100)]
    assert not torch.equal(keys([5], 0), keys([5], 1))


def test_uniforms_and_normals_have_their_moments():
    u = uniforms([1, 2, 3], 4000)
    assert u.min() >= 0
    assert u.max() < 1
    assert torch.allclose(u.mean(1), torch.tensor(0.5).double(), atol=0.02)
    assert torch.corrcoef(u)[0, 1].abs() < 0.05
    counter = torch.arange(200_000, dtype=torch.int32)[None]
    z = normals(hash_bits(counter, keys([9], 0))).double()[0]
    assert z.mean().abs() < 0.01
    assert z.var().item() == pytest.approx(1, abs=0.01)
    assert (z**4).mean().item() == pytest.approx(3, abs=0.08)
    assert (z[1:] * z[:-1]).mean().abs() < 0.01


def flat(value, side=128, batch=1):
    full = torch.full((batch,), side)
    return Ragged(torch.full((batch, 3, side, side), value), full, full)


def test_gaussian_noise_has_the_strength_asked_for():
    images = flat(0.5, batch=2)
    noise = gaussian_noise(images, torch.tensor([10.0, 25.0]), torch.tensor([False, True]), keys([1, 2], 0))
    assert noise[0].std().item() * 255 == pytest.approx(10, rel=0.02)
    assert noise[1].std().item() * 255 == pytest.approx(25, rel=0.02)
    assert torch.equal(noise[1, 0], noise[1, 1])  # grey: the same in all channels
    assert torch.corrcoef(noise[0].flatten(1))[0, 1].abs() < 0.03


@pytest.mark.parametrize("level", [0, 3, 40, 200, 255])
def test_poisson_noise_is_poisson(level):
    """256 levels are present, so counts have the mean level·256/255; all moments and the mass are checked."""
    images = flat(level / 255, 256)
    images.pixels[:, :, 0] = torch.arange(256) / 255  # every level is present
    noise = poisson_noise(images, torch.tensor([1.0]), torch.tensor([False]), keys([4], 0))
    counts = ((noise[0, :, 1:] + level / 255) * 256).double().flatten()
    mean = level * 256 / 255
    assert torch.allclose(counts, counts.round(), atol=2e-3)
    counts = counts.round()
    assert counts.mean().item() == pytest.approx(mean, rel=0.01, abs=1e-9)
    assert counts.var().item() == pytest.approx(mean, rel=0.02, abs=1e-9)
    if level == 3:
        mass = torch.bincount(counts.long(), minlength=12)[:12] / len(counts)
        k = torch.arange(12.0).double()
        expected = (k * math.log(mean) - mean - torch.lgamma(k + 1)).exp()
        assert torch.allclose(mass.double(), expected, atol=0.003)


def test_poisson_noise_scales_and_counts_levels():
    """With two levels v = 2, so counts are few and the noise strong."""
    images = flat(1.0)
    images.pixels[..., :64] = 0
    noise = poisson_noise(images, torch.tensor([0.5]), torch.tensor([True]), keys([4], 0))
    bright = noise[0, :, :, 64:]
    assert noise[0, :, :, :64].abs().max() == 0
    assert bright.var().item() == pytest.approx(0.25 * 2 / 4, rel=0.05)
    assert torch.equal(bright[0], bright[2])


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
def test_jpeg_is_pillows(quality):
    photo = (synthetic_photo(64, 96, seed=3) * 255).round() / 255
    made, pillows = jpeg_each(photo[None], torch.tensor([float(quality)]))[0], jpeg(photo, quality)
    # libjpeg's transform is in integers: coefficients half way between two steps may fall to the other side.
    assert (made - pillows).abs().mean() * 255 < 0.8
    assert (made - pillows).mean().abs() * 255 < 0.05
    assert (made - pillows).abs().mean() < 0.2 * (pillows - photo).abs().mean()


def test_jpeg_of_flat_blocks_is_pillows_to_a_level_or_two():
    """No coefficient but the mean: color conversion, quantization and upsampling are left."""
    blocks = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    photo = (F.interpolate(blocks, scale_factor=16, mode="nearest")[0] * 255).round() / 255
    for quality in (20, 75):
        made = jpeg_each(photo[None], torch.tensor([float(quality)]))[0]
        difference = (made - jpeg(photo, quality)).abs() * 255
        assert difference.max() < 2.5
        assert (difference < 0.5).float().mean() > 0.6


def test_jpeg_tables_are_the_ijgs():
    luma, chroma = quantization_tables(torch.tensor([50.0, 25.0, 100.0]))
    assert luma[0, 0].tolist() == [16, 11, 10, 16, 24, 40, 51, 61]
    assert luma[1, 0].tolist() == [32, 22, 20, 32, 48, 80, 102, 122]
    assert luma[2].unique().tolist() == [1]
    assert chroma[0, 0, :4].tolist() == [17, 18, 24, 47]


def test_jpeg_each_has_its_own_quality_and_odd_sides():
    photos = torch.stack([synthetic_photo(50, 41, seed=s) for s in range(2)])
    both = jpeg_each(photos, torch.tensor([20.0, 90.0]))
    assert both.shape == photos.shape
    for i, q in enumerate((20.0, 90.0)):
        assert torch.equal(both[i : i + 1], jpeg_each(photos[i : i + 1], torch.tensor([q])))
    error = (both - photos).abs().mean((1, 2, 3))
    assert error[0] > 1.5 * error[1]


def test_jpeg_is_differentiable_on_wish():
    """Its values stay near the exact ones, and descending its gradient brings it nearer to a wanted picture."""
    photo = synthetic_photo(32, 32)[None]
    wanted, quality = 0.9 * photo, torch.tensor([80.0])
    soft = jpeg_each(photo, quality, differentiable=True)
    assert (soft - jpeg_each(photo, quality)).abs().mean() * 255 < 3
    x = photo.clone().requires_grad_()
    losses = []
    for _ in range(10):
        loss = (jpeg_each(x, quality, differentiable=True) - wanted).square().mean()
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, x)
        assert gradient.isfinite().all()
        x = (x - 300 * gradient).detach().requires_grad_()
    assert losses[-1] < 0.8 * losses[0]


def test_soft_rounding_by_hand():
    """2.3 -> 2 + 0.3^3, with the slope 3·0.3^2; the value is near a whole number, and steps have a gradient."""
    x = torch.tensor([2.3, -1.4, 5.0], dtype=torch.float64, requires_grad=True)
    found = diff_jpeg._soft_round(x)
    assert found.tolist() == pytest.approx([2.027, -1.064, 5.0])
    found.sum().backward()
    assert x.grad.tolist() == pytest.approx([0.27, 0.48, 0.0], abs=1e-12)


def test_degrade_is_a_function_of_each_seed():
    photos = torch.stack([synthetic_photo(64, 96, seed=s) for s in range(5)])
    low, drawn = degrade(photos, [1, 2, 3, 4, 5])
    again, _ = degrade(photos, [1, 2, 3, 4, 5])
    assert low.shape == (5, 3, 16, 24)
    assert torch.equal(low, again)
    assert torch.equal((low * 255).round() / 255, low)
    alone, drawn_alone = degrade(photos[2:3], [3])
    assert drawn_alone[0] == drawn[2]
    assert (alone[0] - low[2]).abs().mean() * 255 < 0.5  # rounding of transforms of another size, no more
    assert (degrade(photos[:1], [99])[0] - low[:1]).abs().mean() > 0.003
    assert degrade(photos[:0], [])[0].shape == (0, 3, 16, 24)


def test_drawn_parameters_follow_the_options():
    config = DegradationConfig()
    p = draw_parameters(list(range(4000)), config, height=256, width=256, scale=4)
    kinds = torch.bincount(p.first.kernel.kind, minlength=8) / 4000
    assert torch.allclose(kinds[:7], torch.tensor([0.405, 0.225, 0.108, 0.027, 0.108, 0.027, 0.1]), atol=0.025)
    assert (p.second.kernel.kind == KINDS.index("none")).float().mean().item() == pytest.approx(0.2, abs=0.025)
    factor = p.first.height / 256
    shares = [(factor > 1).float().mean(), (factor < 1).float().mean(), (factor == 1).float().mean()]
    assert torch.allclose(torch.tensor(shares), torch.tensor([0.2, 0.7, 0.1]), atol=0.03)
    assert p.first.height.min() >= 0.15 * 256 - 1
    assert p.first.height.max() <= 384
    assert p.second.width.max() <= 64 * 1.2
    assert p.first.gaussian.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert p.first.grey.float().mean().item() == pytest.approx(0.4, abs=0.03)
    sigma = p.first.strength[p.first.gaussian]
    assert 1 <= sigma.min() < 1.5
    assert 29.5 < sigma.max() <= 30
    assert sorted(set(p.first.kernel.size.tolist())) == list(range(7, 22, 2))
    beta = p.first.kernel.beta[(p.first.kernel.kind == 2) | (p.first.kernel.kind == 3)]
    assert (beta < 1).float().mean().item() == pytest.approx(0.5, abs=0.07)
    # The second order has weaker blur and noise, and noise of its own.
    for widths in (p.second.kernel.sigma_x, p.second.kernel.sigma_y):
        assert 1.45 < widths.max() <= 1.5
    assert 24.5 < p.second.strength[p.second.gaussian].max() <= 25
    assert 0.3 * 64 - 1 <= p.second.height.min() < 0.32 * 64
    assert not (p.first.key == p.second.key).any()
    assert -math.pi <= p.first.kernel.rotation.min() < -3
    assert 3 < p.first.kernel.rotation.max() < math.pi
    # Real-ESRGAN cuts frequencies from pi/3 on, in kernels of 13 and more from pi/5; of the final filter from pi/3.
    small = p.first.kernel.size < 13
    lowest = [float(omega.min()) for omega in (p.first.kernel.omega[small], p.first.kernel.omega[~small], p.sinc.omega)]
    assert lowest == pytest.approx([math.pi / 3, math.pi / 5, math.pi / 3], abs=0.02)
    assert (p.sinc.kind == KINDS.index("sinc")).float().mean().item() == pytest.approx(0.8, abs=0.025)
    assert p.sinc_before_jpeg.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_other_options_are_drawn_from_too():
    config = DegradationConfig(jpeg_range=(50, 60), jpeg_range2=(70, 75), final_sinc_prob=0.0, second_blur_prob=0.0)
    p = draw_parameters(list(range(200)), config, height=4, width=4, scale=4)
    assert 50 <= p.first.quality.min() < 51 < 59 < p.first.quality.max() <= 60
    assert 70 <= p.second.quality.min() < 71 < 74 < p.second.quality.max() <= 75
    assert (p.sinc.kind == KINDS.index("none")).all()
    assert (p.second.kernel.kind == KINDS.index("none")).all()
    for order in (p.first, p.second):  # no side vanishes
        assert order.height.min() == order.width.min() == 1


def test_ranges_on_one_side_of_one_are_drawn_from_one_on():
    config = DegradationConfig(kernel_prob=(0, 0, 1, 0, 0, 0), betag_range=(2, 4), resize_range=(1.1, 1.5))
    p = draw_parameters(list(range(2000)), config, height=1000, width=1000, scale=4)
    beta = p.first.kernel.beta
    assert (beta < 2).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert 1 <= beta.min() < 1.05
    assert 3.9 < beta.max() <= 4
    assert p.first.height.min() == 1000
    assert ((p.first.height > 1000) & (p.first.height < 1100)).sum() > 20
    assert 1400 < p.first.height.max() <= 1500


def test_options_are_found_in_basicsr_files():
    options = {
        "name": "x",
        "datasets": {"train": {"blur_sigma": [0.1, 1], "kernel_prob": [1, 0, 0, 0, 0, 0]}},
        "jpeg_range2": [50, 60],
        "second_blur_prob": 1,
    }
    config = DegradationConfig.from_options(options)
    assert (config.blur_sigma, config.jpeg_range2, config.second_blur_prob) == ((0.1, 1), (50, 60), 1.0)
    assert config.kernel_prob[0] == 1
    with pytest.raises(ValueError, match="expected options such as"):
        DegradationConfig.from_options({"lr": 1})
    with pytest.raises(ValueError, match=r"noise_range: expected 0 <= low <= high, got \(5, 1\)"):
        DegradationConfig(noise_range=(5, 1))
    with pytest.raises(ValueError, match="sinc_prob: expected a probability"):
        DegradationConfig(sinc_prob=1.5)
    with pytest.raises(ValueError, match="kernel_list: expected kinds"):
        DegradationConfig(kernel_list=("iso", "magic"), kernel_prob=(0.5, 0.5))
    for weights in ((0.5, -0.5), (0.0, 0.0)):
        with pytest.raises(ValueError, match="kernel_prob2: expected weights of 0 or more, not all 0"):
            DegradationConfig(kernel_list2=("iso", "aniso"), kernel_prob2=weights)
    for side in (20, 5):
        with pytest.raises(ValueError, match=f"blur_kernel_size2: expected an odd side of 7 or more, got {side}"):
            DegradationConfig(blur_kernel_size2=side)
    for ways in ((1.0, 1.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0)):
        with pytest.raises(ValueError, match=r"resize_prob: expected three weights \(up, down, keep\), got"):
            DegradationConfig(resize_prob=ways)


def test_bad_input_to_degrade():
    with pytest.raises(ValueError, match="sides multiples of 4"):
        degrade(torch.rand(1, 3, 30, 32), [0])
    with pytest.raises(ValueError, match="seeds: expected 2"):
        degrade(torch.rand(2, 3, 32, 32), [0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blur_sigma": 3}, "blur_sigma: expected two numbers, got 3"),
        ({"blur_sigma": [1, 2, 3]}, r"blur_sigma: expected two numbers, got \[1, 2, 3\]"),
        ({"noise_range": [1]}, r"noise_range: expected two numbers, got \[1\]"),
        ({"jpeg_range": ["a", "b"]}, "jpeg_range: expected a number, got 'a'"),
        ({"sinc_prob": None}, "sinc_prob: expected a number, got None"),
        ({"kernel_list": "iso"}, "kernel_list: expected kinds, got 'iso'"),
        ({"kernel_prob": 0.5}, "kernel_prob: expected weights, got 0.5"),
        ({"blur_kernel_size": 21.5}, "blur_kernel_size: expected a whole number, got 21.5"),
    ],
)
def test_options_of_another_kind_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        DegradationConfig.from_options(options)
