"""What half precision may change in the models that come with the package: hardly anything."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finpercep.models import RewardModel
from finpercep.models.precision import is_of
from tests.conftest import synthetic_photo

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", params=["finpercep-tiny", "finpercep-small"])
def model(request: pytest.FixtureRequest) -> RewardModel:
    return RewardModel.from_pretrained(request.param).requires_grad_(False)


@pytest.fixture(scope="module", params=["synthetic", "scikit-image"])
def picture(request: pytest.FixtureRequest) -> Tensor:
    if request.param == "synthetic":
        return synthetic_photo(128, 160)
    data = pytest.importorskip("skimage.data", reason="scikit-image has the photo")
    return torch.from_numpy(data.astronaut()[100:228, 100:260]).permute(2, 0, 1).float() / 255


def score_and_slope(model: RewardModel, images: Tensor, autocast: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Scores (B,), and the gradient of their sum to the images."""
    images = images.clone().requires_grad_()
    with _context(autocast):
        score = model(images).score
    return score.detach(), torch.autograd.grad(score.sum(), images)[0]


def _context(autocast: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if autocast is None else torch.autocast("cpu", autocast)


def nearly_equal(picture: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    strengths = torch.linspace(0.3, 0.4, 16).view(-1, 1, 1, 1) / 255
    return (picture + strengths * torch.randn(16, *picture.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("way", ["model", "autocast"])
def test_scores_their_order_and_gradients_survive(
    model: RewardModel, picture: Tensor, way: str, dtype: torch.dtype
) -> None:
    half, autocast = (copy.deepcopy(model).to(dtype), None) if way == "model" else (model, dtype)
    (score, slope), (found, turned) = (
        score_and_slope(model, picture[None]),
        score_and_slope(half, picture[None], autocast),
    )
    assert (found - score).abs().max() < 3e-3
    assert torch.cosine_similarity(turned.flatten(), slope.flatten(), dim=0) > 0.98
    group = nearly_equal(picture)
    with torch.no_grad():
        exact = model(group).score
        with _context(autocast):
            near = half(group).score
    assert 0 < exact.std() < 5e-3
    ranks = torch.stack([values.argsort().argsort().double() for values in (exact, near)])
    assert torch.corrcoef(ranks)[0, 1] > 0.999


@pytest.mark.parametrize("dtype", HALVES)
def test_convolutions_keep_their_weights(model: RewardModel, dtype: torch.dtype, tmp_path: Path) -> None:
    moved = copy.deepcopy(model).to(dtype)
    moved.save_pretrained(tmp_path)
    loaded = [RewardModel.from_pretrained(tmp_path, dtype=kind) for kind in (dtype, None)]
    for half in (moved, *loaded, moved.expand({"width": 72})):
        assert all(p.dtype == dtype for p in half.head.parameters())
        assert is_of(half, dtype)
        assert not is_of(half, torch.float32)
        expected = model.encoder.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in half.encoder.state_dict().items())
    assert is_of(model, torch.float32)
    assert is_of(copy.deepcopy(moved).double(), torch.float64)


def test_half_weights_that_are_put_in_become_float32(model: RewardModel) -> None:
    state = {name: value.half() for name, value in model.state_dict().items()}
    given = copy.deepcopy(model)
    given.load_state_dict(state, assign=True)
    assert is_of(given, torch.float16)
    assert all(p.dtype == torch.float32 for p in [*given.encoder.parameters(), *given.decoder.parameters()])
