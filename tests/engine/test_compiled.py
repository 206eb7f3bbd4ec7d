"""Score and map inside `torch.compile`, forward and backward: one graph, one compilation for all sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from finpercep.models import RewardModel
from tests.models.conftest import VIT

SIZES = ((64, 96), (80, 80), (128, 64))


def ascent(reward: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score, map, and the gradient of both to the pixels."""
    out = reward(images)
    (gradient,) = torch.autograd.grad(out.score.sum() - out.map.mean(), images)
    return out.score, out.map, gradient


@pytest.mark.compile
def test_forward_and_backward_are_compiled_once(small_model: RewardModel) -> None:
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(small_model, fullgraph=True, dynamic=True, backend=graphs)
    for height, width in SIZES:
        images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
        for found, expected in zip(ascent(compiled, images), ascent(small_model, images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert graphs.frame_count == 1


def test_frozen_weights_get_no_gradient_and_nothing_is_kept_for_one() -> None:
    """A linear layer keeps its input only for its weight's gradient: frozen, the graph holds less."""
    torch.manual_seed(0)
    kept = {}
    for frozen in (False, True):
        model = RewardModel(VIT, {"width": "light"}).eval().requires_grad_(not frozen)
        weights = {p.data_ptr() for p in model.parameters()}
        size: dict[int, int] = {}

        def keep(tensor: Tensor, size: dict[int, int] = size, weights: set[int] = weights) -> Tensor:
            if tensor.data_ptr() not in weights:
                size[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        images = torch.rand(1, 3, 64, 64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(images)
        out.score.sum().backward()
        assert images.grad is not None
        assert images.grad.abs().sum() > 0
        assert all((p.grad is None) == frozen for p in model.head.parameters())
        kept[frozen] = sum(size.values())
    assert kept[True] < kept[False]
