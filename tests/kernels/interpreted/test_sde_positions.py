"""sde_step(log_prob="position"): the Triton kernels against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from finpercep.kernels import _config
from finpercep.ops.sde import sde_step, sde_step_reference
from tests.ops.test_sde_positions import SHAPES, fresh, levels, with_gradient

KINDS = ["flow", "cps", "dance"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks and programs for small inputs."""
    monkeypatch.setattr(_config, "FLAT_BLOCK", 16)
    monkeypatch.setattr(_config, "PARTIALS", 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(poisoned, small_blocks, shape, kind):
    """All fields and the gradient, drawing with the exact KL and re-scoring with flow_grpo's."""
    v, x, other, reference = fresh(*shape)
    for name, kl_kind in (("noise", "exact"), ("next_sample", "flow_grpo")):
        options = {name: other, "kind": kind, "reference_velocity": reference, "kl_kind": kl_kind}
        ours = with_gradient(sde_step, v, x, *levels(len(x)), backend="triton", **options)
        expected = with_gradient(sde_step_reference, v, x, *levels(len(x)), **options)
        assert ours[1].shape == (shape[0], shape[2] * shape[3])
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_blocks_as_on_a_gpu(poisoned):
    v, x, end, _ = fresh(1, 2, 31, 37)
    ours = with_gradient(sde_step, v, x, 0.7, 0.6, next_sample=end, backend="triton")
    expected = with_gradient(sde_step_reference, v, x, 0.7, 0.6, next_sample=end)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ratio_is_one(small_blocks, kind, dtype):
    v, x, noise, _ = fresh(2, 3, 5, 7, dtype=dtype)
    options = {"kind": kind, "log_prob": "position", "backend": "triton"}
    drawn = sde_step(v, x, *levels(2), noise=noise, **options)
    again = sde_step(v, x, *levels(2), next_sample=drawn.next_sample, return_mean=False, **options)
    assert torch.equal(drawn.log_prob, again.log_prob)
    exact = sde_step_reference(
        v.double(), x.double(), *levels(2), next_sample=drawn.next_sample.double(), kind=kind, log_prob="position"
    )
    torch.testing.assert_close(drawn.log_prob.double(), exact.log_prob, rtol=1e-5, atol=1e-5)


def test_views_and_an_empty_batch(poisoned, small_blocks):
    v, x, end, _ = fresh(4, 3, 5, 7)
    images = (v[::2], x.mT.contiguous().mT[:2], end[:1].expand(2, 3, 5, 7))
    strided, plain = (
        with_gradient(sde_step, a, b, *levels(2), next_sample=c, backend="triton")
        for a, b, c in (images, [image.contiguous() for image in images])
    )
    assert all(torch.equal(a, b) for a, b in zip(strided, plain, strict=True))
    empty = torch.zeros(0, 3, 4, 5, requires_grad=True)
    step = sde_step(empty, empty.detach(), 0.6, 0.5, noise=empty.detach(), log_prob="position", backend="triton")
    assert step.log_prob.shape == (0, 20)
    step.log_prob.sum().backward()
    assert empty.grad.shape == (0, 3, 4, 5)


@pytest.mark.parametrize(("kind", "s", "s_next"), [("cps", 0.2, 0.0), ("dance", 0.4, 0.4), ("flow", 0.0, 0.0)])
def test_deterministic_steps_and_what_is_not_finite(small_blocks, kind, s, s_next):
    v, x, end, _ = fresh(1, 3, 4, 5)
    end[0, 1, 2, 3] = math.inf
    still = with_gradient(sde_step, v, x, s, s_next, next_sample=end, kind=kind, return_mean=False, backend="triton")
    assert (still[1] == 0).all()
    moving = sde_step(v, x, 0.6, 0.5, next_sample=end, kind=kind, log_prob="position", backend="triton")
    assert moving.log_prob.isinf().nonzero().tolist() == [[0, 2 * 5 + 3]]
    rising = sde_step(v, x, torch.tensor(0.5), torch.tensor(0.6), noise=x, log_prob="position", backend="triton")
    assert rising.log_prob.isnan().all()
