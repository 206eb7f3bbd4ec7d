"""The reward model as a module: shapes, gradients, compilation, identity."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.models import RewardModel
from finpercep.models.tiles import pad_to_multiple

Photo = Callable[..., Tensor]
CONV = {"type": "conv", "channels": [8, 16], "depths": [1, 1]}


@pytest.fixture(scope="module")
def model() -> RewardModel:
    torch.manual_seed(3)
    built = RewardModel(CONV, {"width": 8}).eval()
    assert built.decoder is not None
    with torch.no_grad():  # a new model's map and score hardly move
        built.decoder.conv2.weight.mul_(20)
        built.head.mlp[-1].weight.mul_(20)
    return built


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 50), (64, 96), (33, 17)])
def test_any_size_is_scored_as_with_its_border_repeated(
    model: RewardModel, make_photo: Photo, height: int, width: int
) -> None:
    images = torch.stack([make_photo(height, width, seed) for seed in range(2)])
    out = model(images)
    padded = model(F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate"))
    assert torch.allclose(out.score, padded.score, atol=1e-6)
    assert torch.allclose(out.map, padded.map[..., :height, :width], atol=1e-6)
    assert out.score.shape == (2,)
    assert out.map.shape == (2, 1, height, width)
    for part in out:
        assert ((part >= 0) & (part <= 1)).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 24), (13, 8), (8, 9), (30, 31)])
def test_padding_repeats_the_border(make_photo: Photo, height: int, width: int) -> None:
    images = make_photo(height, width)[None]
    expected = F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")
    assert torch.equal(pad_to_multiple(images, 8), expected)


def test_without_a_decoder_there_is_no_map(model: RewardModel, make_photo: Photo) -> None:
    base = RewardModel(CONV).eval()
    photo = make_photo(30, 41)
    assert not base.has_map
    assert model.has_map
    assert base(photo[None]).map is None
    for out in (base.score(photo), base.score([photo, photo]), base.score(photo, tile=16), base.score([])):
        assert out.map is None
    assert torch.allclose(base.score(photo, tile=16).score, base(photo[None]).score, atol=1e-6)


@torch.no_grad()
def test_alone_as_in_a_batch(model: RewardModel, make_photo: Photo) -> None:
    images = torch.stack([make_photo(40, 56, seed) for seed in range(5)])
    together = model(images)
    assert together.score.std() > 1e-4
    for i in range(5):
        alone = model(images[i : i + 1])
        assert (alone.score - together.score[i]).abs().max() <= 1e-6
        assert (alone.map - together.map[i]).abs().max() <= 1e-6


def test_directional_derivative_in_double(model: RewardModel, make_photo: Photo) -> None:
    double = copy.deepcopy(model).double()
    images = make_photo(21, 34)[None].double().requires_grad_(True)
    out = double(images)
    assert out.score.dtype == out.map.dtype == torch.float64
    assert (out.score - model(images.float()).score).abs().max() < 1e-5
    for part in (0, 1):
        (gradient,) = torch.autograd.grad(out[part].sum(), images, retain_graph=True)
        direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            up, down = double(images + 1e-7 * direction)[part], double(images - 1e-7 * direction)[part]
        assert torch.isclose((gradient * direction).sum(), (up.sum() - down.sum()) / 2e-7, rtol=1e-4)


def test_gradients_reach_pixels_and_all_parameters(model: RewardModel, make_photo: Photo) -> None:
    trained = copy.deepcopy(model)
    images = make_photo(37, 50)[None].requires_grad_(True)
    out = trained(images)
    (out.score.sum() + out.map.mean()).backward()
    assert images.grad is not None
    assert (images.grad != 0).float().mean() > 0.99
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())


def test_compiles_without_a_break(model: RewardModel, make_photo: Photo) -> None:
    """Sides that need padding: its gradient's strides once broke the compiled backward."""
    images = torch.stack([make_photo(35, 50, seed) for seed in (1, 2)])
    results = []
    for run in (model, torch.compile(model, fullgraph=True)):
        x = images.clone().requires_grad_(True)
        out = run(x)
        (gradient,) = torch.autograd.grad(out.score.sum() + out.map.mean(), x)
        results.append((*out, gradient))
    for eager, compiled in zip(*results, strict=True):
        assert (eager - compiled).abs().max() <= 1e-5 * max(1, float(eager.abs().max()))


@torch.no_grad()
def test_scores_are_float32_from_the_pooled_feature_on(model: RewardModel, make_photo: Photo) -> None:
    images = torch.stack([make_photo(40, 56, seed) for seed in range(4)])
    full = model(images)
    for dtype in (torch.bfloat16, torch.float16):
        low = copy.deepcopy(model).to(dtype)
        out = low(images.to(dtype))
        assert (out.score.dtype, out.map.dtype) == (torch.float32, dtype)
        pooled, _ = low.pool_and_map(images.to(dtype))
        expected = copy.deepcopy(low.head).double().mlp(pooled.double()).sigmoid().squeeze(-1)
        assert (out.score - expected).abs().max() < 1e-6
        assert (out.score - full.score).abs().max() < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images)
    assert mixed.score.dtype == torch.float32
    assert (mixed.score - full.score).abs().max() < 0.02


def test_a_half_precision_model_compiles_without_a_break(model: RewardModel, make_photo: Photo) -> None:
    images = make_photo(35, 50)[None]
    low = copy.deepcopy(model).bfloat16()
    compiled = torch.compile(low, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(images.bfloat16()).score, low(images.bfloat16()).score, atol=1e-5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(compiled(images).score, model(images).score, atol=1e-3)


def test_shapes_without_data() -> None:
    with torch.device("meta"):
        out = RewardModel(CONV, {"width": 8})(torch.zeros(2, 3, 30, 41))
    assert (out.score.shape, out.map.shape) == ((2,), (2, 1, 30, 41))


def test_bad_tensors(model: RewardModel) -> None:
    for given, kind in (("photo.png", "str"), (torch.zeros(1, 3, 8, 8).numpy(), "ndarray"), ([], "list")):
        message = rf"^images: expected a tensor \(B,3,H,W\), got {kind}; use score\(\) for paths, PIL images and arr"
        with pytest.raises(TypeError, match=message):
            model(given)
    for shape in ((3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"^images: expected \(B,3,H,W\), got \("):
            model(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"^images: expected float in \[0, 1\], got torch.uint8; use score"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"^images: expected torch.float32 like the model, got torch.bfloat16"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"^images: expected on cpu like the model, got meta"):
        model(torch.zeros(1, 3, 8, 8, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)).score.isfinite().all()


def test_bad_configurations() -> None:
    with pytest.raises(ValueError, match=r"^encoder: expected type .*got 'swin'"):
        RewardModel({"type": "swin"})
    with pytest.raises(ValueError, match=r"^depths: expected one for each of the channels \(8, 16\), got \(1,\)"):
        RewardModel({"type": "conv", "channels": [8, 16], "depths": [1]})


def test_fingerprint(model: RewardModel) -> None:
    assert len(model.fingerprint) == 16
    assert copy.deepcopy(model).fingerprint == model.fingerprint
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert other.fingerprint != model.fingerprint
    literal = RewardModel(CONV, {"width": 8}, {"gate": "degradation"})
    literal.load_state_dict(model.state_dict())  # the same weights under another configuration
    assert literal.fingerprint != model.fingerprint


def test_a_saved_model_brings_the_beginning_of_a_card(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: finpercep" in card
    assert "finpercep.RewardModel.from_pretrained" in card
    (tmp_path / "README.md").write_text("of its owner")
    small_model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "of its owner"


def test_saved_weights_are_as_readable_as_their_configuration(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    modes = {name: (tmp_path / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert modes["config.json"] == modes["model.safetensors"]
