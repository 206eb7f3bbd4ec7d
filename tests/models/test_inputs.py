"""Preprocessing: what is scored is what an 8-bit file would hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.autograd import forward_ad

from finpercep.models import RewardModel
from finpercep.models.filters import derivative_kernels
from finpercep.models.inputs import as_stored, check_images
from finpercep.models.vit_encoder import CLIP_MEAN, CLIP_STD, ViTEncoder
from tests.conftest import synthetic_photo
from tests.models.conftest import VIT

STORED = "rgb8-replicate-v2"


def stored_model() -> RewardModel:
    torch.manual_seed(0)
    model = RewardModel({"type": "conv", "channels": [8, 12], "depths": [1, 1]}, {"width": 8}, {}, STORED)
    torch.nn.init.normal_(model.decoder.conv2.weight, std=0.3)  # type: ignore[union-attr]
    return model.eval()


def test_every_8_bit_value_stays_bit_for_bit() -> None:
    values = torch.arange(256) / 255
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        expected = torch.arange(256).to(torch.promote_types(dtype, torch.float32)) / 255
        assert torch.equal(as_stored(values.to(dtype)), expected)


def test_floats_become_the_nearest_level_of_a_file() -> None:
    x = torch.tensor([-0.2, 0.49 / 255, 0.51 / 255, 100.4 / 255, 1.3])
    assert torch.equal(as_stored(x), torch.tensor([0, 0, 1, 100, 255]) / 255)
    assert as_stored(torch.tensor([float("nan")])).isnan().all()


def test_the_gradient_passes_the_rounding_and_ends_at_the_range() -> None:
    x = torch.tensor([-0.2, 0.3, 0.50001, 1.3], requires_grad=True)
    out = as_stored(x)
    assert torch.equal(out, as_stored(x.detach()))
    (gradient,) = torch.autograd.grad((out * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), x)
    assert gradient.tolist() == [0.0, 2.0, 3.0, 0.0]


def test_float32_is_taken_by_half_precision_and_not_by_double() -> None:
    for dtype, others in ((torch.bfloat16, ()), (torch.float32, (torch.float64,)), (torch.float64, (torch.float32,))):
        weights = torch.zeros(1, dtype=dtype)
        for taken in {dtype, torch.promote_types(dtype, torch.float32)}:
            check_images(torch.zeros(1, 3, 8, 8, dtype=taken), weights)
        for other in others:
            with pytest.raises(TypeError, match=f"^images: expected {dtype} like the model, got {other}$"):
                check_images(torch.zeros(1, 3, 8, 8, dtype=other), weights)


def test_derivatives_in_forward_mode_are_those_in_reverse() -> None:
    """Of a whole model, by dual tensors and by torch.func: the rounding stops neither."""
    model = stored_model().double().requires_grad_(False)
    torch.manual_seed(1)
    x, direction = synthetic_photo(24, 32)[None].double(), torch.randn(1, 3, 24, 32, dtype=torch.float64)
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(given).score.sum(), given)
    expected = (gradient * direction).sum()
    assert expected.abs() > 1e-6
    score, by_func = torch.func.jvp(lambda images: model(images).score, (x,), (direction,))
    with forward_ad.dual_level():
        by_duals = forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction)).score).tangent
    assert torch.equal(score, model(x).score)
    for found in (by_func, by_duals):
        torch.testing.assert_close(found.sum(), expected, rtol=1e-9, atol=0)
    by_grad = torch.func.grad(lambda images: model(images).score.sum())(x)
    torch.testing.assert_close(by_grad, gradient, rtol=1e-9, atol=1e-12)


def test_a_float_image_scores_as_its_file() -> None:
    model, image = stored_model(), synthetic_photo(40, 50)
    file = (image * 255).round().to(torch.uint8)
    for given in (image, image + 0.4 / 255 * torch.rand(image.shape).sub(0.5), file.float() / 255):
        with_gradient = model((given.clamp(0, 1) * 255).round().div(255)[None].requires_grad_(True))
        assert torch.equal(model.score(file).score, model.score(file.float() / 255).score)
        assert torch.equal(with_gradient.score.detach(), model.score((given.clamp(0, 1) * 255).round() / 255).score)
    exact = model.score(file)
    scored = model.score(image)
    assert torch.equal(exact.score, scored.score)
    assert torch.equal(exact.map, scored.map)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_float32_pixels_and_stays_near(dtype: torch.dtype) -> None:
    model, image = stored_model(), synthetic_photo(64, 64)[None]
    with torch.no_grad():
        expected = model(image).score
        with torch.autocast("cpu", dtype):
            autocast = model(image).score
        half = stored_model().to(dtype)
        given = [half(image).score, half((image * 255).round().div(255).to(dtype)).score]
    for score in (autocast, *given):
        torch.testing.assert_close(score, expected, rtol=0, atol=3e-3)
    assert torch.equal(given[0], given[1])  # the half-precision image of 8-bit values is that file


def test_filters_of_a_half_precision_model_keep_their_values() -> None:
    model = stored_model()
    half = stored_model().to(torch.bfloat16)
    assert torch.equal(half.encoder.stem.kernels, model.encoder.stem.kernels)
    assert half.double().encoder.stem.kernels.dtype == torch.float64


def test_preprocessing_is_part_of_the_model(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = stored_model()
    plain = RewardModel({"type": "conv", "channels": [8, 12], "depths": [1, 1]}, {"width": 8}, {})
    plain.load_state_dict(model.state_dict())
    assert "preprocessing" not in plain.config
    assert plain.fingerprint != model.fingerprint
    assert model.expand({"width": 16}).config["preprocessing"] == STORED
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace(STORED, "rgb9"))
    with pytest.raises(ValueError, match="preprocessing: expected rgb01-replicate-v1 or rgb8-replicate-v2, got 'rgb9'"):
        RewardModel.from_pretrained(tmp_path)


@pytest.fixture(params=[torch.bfloat16, torch.float64], ids=str)
def another_default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_constants_have_the_values_of_float32_whatever_torchs_default(another_default: torch.dtype) -> None:
    wide = torch.promote_types(another_default, torch.float32)
    encoder = ViTEncoder(VIT["config"], VIT["taps"])
    for found, values in ((encoder.mean, CLIP_MEAN), (encoder.std, CLIP_STD)):
        assert torch.equal(found.flatten(), torch.tensor(values, dtype=torch.float32).to(wide))
    luminance = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32)  # times 1/8, where the first filter starts
    assert torch.equal(derivative_kernels()[0, :, 0, 0], -luminance / 8)
    if another_default == wide:  # a model that is used as it was built
        assert stored_model()(torch.rand(1, 3, 24, 32)).score.dtype == wide


def test_maps_by_tiles_are_float32_on_the_cpu_whatever_torchs_defaults(another_default: torch.dtype) -> None:
    model, image = stored_model().to(torch.float32), synthetic_photo(100, 70).float()
    with torch.device("meta"):  # as default, it would leave them without values
        found, nothing = model.score(image, tile=32), model.score([])
    assert (found.map.dtype, nothing.score.dtype) == (torch.float32, torch.float32)
    assert (found.map.device.type, nothing.score.device.type) == ("cpu", "cpu")
    torch.testing.assert_close(found.map, model.score(image).map)
