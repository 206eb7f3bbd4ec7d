"""Forward-mode derivatives through the operators: the right value, or an error; never a silent 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.cases import SMALL_CALLS, Work
from finpercep import ops

torch.manual_seed(0)
X, Y = torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.rand(4, 3, 8, 8, dtype=torch.float64)
TOKENS, MAP = torch.rand(2, 16, 5, dtype=torch.float64), torch.rand(2, 1, 8, 8, dtype=torch.float64)
LOG_PROB = torch.rand(6, dtype=torch.float64)

DIFFERENTIABLE = {str(call): work for call in SMALL_CALLS if (work := call.make(torch.float64)).differentiable}


def function_of_one(work: Work, backend: str | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A tensor that receives gradient, and all outputs whose gradient is their slope as a function of it."""
    call, (at, *_) = work.function(backend), work.differentiable
    smooth = [i for i, out in enumerate(work.function()(*work.leaves(True))) if out.requires_grad]

    def function(x: Tensor) -> Tensor:
        outputs = call(*work.inputs[:at], x, *work.inputs[at + 1 :])
        return torch.cat([outputs[i].flatten() for i in smooth if i not in work.detached])

    return work.inputs[at], function


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_jvp_is_the_derivative_along_the_direction(name: str) -> None:
    x, call = function_of_one(DIFFERENTIABLE[name], None)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    _, tangent = torch.func.jvp(call, (x,), (direction,))
    step = 1e-6
    expected = (call(x + step * direction) - call(x - step * direction)) / (2 * step)
    assert expected.abs().max() > 0
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_compiled_backend_raises_under_jvp(name: str, cpp: str) -> None:
    work = DIFFERENTIABLE[name]
    x, call = function_of_one(work, cpp)
    with pytest.raises(RuntimeError, match=f"{work.operator}: no forward-mode derivatives"):
        torch.func.jvp(call, (x,), (torch.ones_like(x),))


def per_sample_loss(log_prob: Tensor, old: Tensor, advantage: Tensor, backend: str | None = None) -> Tensor:
    loss, _ = ops.grpo_loss(log_prob[None], old[None], advantage[None], clip_low=0.2, clip_high=0.2, backend=backend)
    return loss


def test_gradients_of_each_sample_by_vmap() -> None:
    generator = torch.Generator().manual_seed(0)
    log_prob, old = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64) * 0.1
    advantage = torch.randn(4, generator=generator, dtype=torch.float64)
    found = torch.func.vmap(torch.func.grad(per_sample_loss))(log_prob, old, advantage)
    for i in range(4):
        row = log_prob[i].clone().requires_grad_(True)
        (expected,) = torch.autograd.grad(per_sample_loss(row, old[i], advantage[i]), row)
        torch.testing.assert_close(found[i], expected)


def test_a_compiled_backend_raises_under_vmap(cpp: str) -> None:
    rows = torch.zeros(3, 6)
    with pytest.raises(RuntimeError, match="grpo_loss: no transforms of torch"):
        torch.func.vmap(lambda x, a: per_sample_loss(x, x, a, cpp))(rows, torch.ones(3))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_rollout_under_inference_mode_and_an_update_outside(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "cpp":
        request.getfixturevalue("cpp")
    with torch.inference_mode():
        sample, sigma, sigma_next = X.clone(), torch.full((4,), 0.8), torch.full((4,), 0.6)
        rollout = ops.sde_step(
            Y,
            sample,
            sigma,
            sigma_next,
            generator=[torch.Generator().manual_seed(i) for i in range(4)],
            backend=backend,
        )
        advantages = LOG_PROB[:4] - 0.5
    velocity = Y.clone().requires_grad_()
    step = ops.sde_step(velocity, sample, sigma, sigma_next, next_sample=rollout.next_sample, backend=backend)
    clip = {"clip_low": 0.2, "clip_high": 0.2}
    ops.grpo_loss(step.log_prob, rollout.log_prob, advantages, **clip, backend=backend)[0].backward()
    plain = Y.clone().requires_grad_()
    outcome = rollout.next_sample.clone()
    step = ops.sde_step(plain, X, 0.8, 0.6, next_sample=outcome, backend="reference")
    old, weights = rollout.log_prob.clone(), advantages.clone()
    ops.grpo_loss(step.log_prob, old, weights, **clip, backend="reference")[0].backward()
    assert plain.grad is not None
    assert velocity.grad is not None
    torch.testing.assert_close(velocity.grad, plain.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_maps_made_under_inference_mode(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "cpp":
        request.getfixturevalue("cpp")
    with torch.inference_mode():
        degradation, distorted = MAP.clone(), Y.clone()
    tokens, image = TOKENS.clone().requires_grad_(), X.clone().requires_grad_()
    ops.modulate(tokens, degradation, (4, 4), backend=backend).sum().backward()
    ops.degradation_target(image, distorted, normalize="none", backend=backend).sum().backward()
    assert tokens.grad is not None
    assert image.grad is not None
    torch.testing.assert_close(image.grad, torch.sign(X - Y) / 3)
