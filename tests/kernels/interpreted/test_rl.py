"""group_advantage, grpo_loss and sde_step: the Triton kernels against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from finpercep.kernels import _config
from finpercep.ops import group_advantage, grpo_loss, sde_step
from finpercep.ops.advantage import group_advantage_reference
from finpercep.ops.grpo import grpo_loss_reference
from finpercep.ops.sde import sde_step_reference
from tests.ops.equal_rewards import (
    DTYPES,
    check_default_resolution,
    check_noise,
    check_one_unit,
    check_resolution,
    check_sum,
)

from ..launches import record

CLIP = {"clip_low": 0.2, "clip_high": 0.3}
KINDS = ["flow", "cps", "dance"]
LOW = [torch.bfloat16, torch.float16, torch.float32]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks, chunks and programs for small inputs."""
    monkeypatch.setattr(_config, "FLAT_BLOCK", 16)
    monkeypatch.setattr(_config, "FLAT_CHUNK", 64)
    monkeypatch.setattr(_config, "PARTIALS", 2)
    monkeypatch.setattr(_config, "ALL_PARTIALS", 2)
    monkeypatch.setattr(_config, "ADVANTAGE_ONE_LAUNCH", 64)
    monkeypatch.setattr(_config, "ADVANTAGE_TILE", 64)


# ---- group_advantage ------------------------------------------------------------------------------------------------


def rewards_of(count: int, size: int, dtype=torch.float64) -> torch.Tensor:
    """With NaN, infinities and a group of equal rewards that no float represents exactly."""
    rewards = randn(count, dtype=dtype)
    rewards[::11], rewards[5 % count] = math.nan, math.inf
    rewards[size : 2 * size] = 0.1
    return rewards


def ids_of(count: int, size: int) -> torch.Tensor:
    """Shuffled, beyond what a float64 can tell apart, of both signs."""
    ids = (torch.arange(count) // size) - 2**62
    ids[: count // 2] += 2**63 - 1 - count
    return ids[torch.randperm(count, generator=torch.Generator().manual_seed(1))]


def assert_same(ours, expected, tolerance=1e-11) -> None:
    torch.testing.assert_close(ours[0], expected[0], rtol=tolerance, atol=tolerance)
    for a, b in zip(ours[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("size", [1, 3, 12])
def test_group_advantage(poisoned, size, scale, labelled):
    rewards = rewards_of(36, size)
    groups = {"group_ids": ids_of(36, size)} if labelled else {"group_size": size}
    for options in ({}, {"correction": 1, "clip": 0.7}):
        ours = group_advantage(rewards, scale=scale, backend="triton", **groups, **options)
        assert_same(ours, group_advantage_reference(rewards, scale=scale, **groups, **options))


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantage_of_several_programs(poisoned, small_blocks, scale, labelled):
    for size in (4, 24):
        rewards = rewards_of(72, size)
        groups = {"group_ids": ids_of(72, size)} if labelled else {"group_size": size}
        ours = group_advantage(rewards, scale=scale, clip=0.9, backend="triton", **groups)
        assert_same(ours, group_advantage_reference(rewards, scale=scale, clip=0.9, **groups))


def test_advantages_of_4096_rewards_are_one_launch():
    for n, size in ((4096, 24), (4096, 1), (4095, 3), (4096, 4096)):
        rewards = randn(n - n % size, dtype=torch.float32)
        operator = torch.ops.finpercep.group_advantage_triton
        assert len(record(operator, rewards, None, size, 1e-4, 0, 1, 0.0, 1e-6)) == 1
        ids = torch.arange(len(rewards)) // size
        assert len(record(operator, rewards, ids, 0, 1e-4, 0, 1, 0.0, 1e-6)) == 1


@pytest.mark.parametrize("labelled", [False, True])
def test_equal_rewards_give_exactly_zero(labelled):
    rewards = torch.cat([torch.full((24,), 0.1), torch.rand(24)])
    groups = {"group_ids": torch.arange(48) // 24} if labelled else {"group_size": 24}
    advantages, stats = group_advantage(rewards, eps=1e-12, backend="triton", **groups)
    assert (advantages[:24] == 0).all()
    assert [int(s) for s in stats[:4]] == [2, 1, 0, 0]


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_up_to_rounding(labelled, dtype):
    check_one_unit("triton", dtype, labelled)
    check_default_resolution("triton", dtype, labelled)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_up_to_a_resolution(labelled, dtype):
    check_resolution("triton", dtype, labelled)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_below_a_resolution(small_blocks, labelled, dtype):
    check_noise("triton", dtype, labelled)


@pytest.mark.parametrize("labelled", [False, True])
def test_advantages_sum_to_zero(small_blocks, labelled):
    for count, size in ((16, 8), (90, 3), (96, 24), (96, 96)):
        check_sum("triton", count, size, labelled)


def test_the_largest_id_is_not_taken_for_padding():
    rewards, ids = randn(11), torch.tensor([2**63 - 1, 3, -(2**63)])[torch.arange(11) % 3]
    assert_same(
        group_advantage(rewards, group_ids=ids, backend="triton"),
        group_advantage_reference(rewards, group_ids=ids),
    )


@pytest.mark.parametrize("dtype", LOW)
def test_advantages_compute_in_fp32(dtype):
    rewards = torch.rand(48, generator=torch.Generator().manual_seed(0)).to(dtype)
    for groups in ({"group_size": 24}, {"group_ids": ids_of(48, 24)}):
        advantages, _ = group_advantage(rewards, backend="triton", **groups)
        wide, _ = group_advantage_reference(rewards.double(), **groups)
        assert advantages.dtype == torch.float32
        torch.testing.assert_close(advantages.double(), wide, rtol=1e-5, atol=1e-5)


def test_no_rewards():
    for groups in ({"group_size": 4}, {"group_ids": torch.zeros(0, dtype=torch.int64)}):
        advantages, stats = group_advantage(torch.zeros(0), backend="triton", **groups)
        assert advantages.shape == (0,)
        assert [float(s) for s in stats] == [0.0] * 6


# ---- grpo_loss ------------------------------------------------------------------------------------------------------


def grpo(function, log_prob, old, advantages, kl, **options):
    loss, stats = function(log_prob, old, advantages, kl=kl, beta=0.1 if kl is not None else 0.0, **CLIP, **options)
    wanted = [t for t in (log_prob, kl) if t is not None]
    return [loss, torch.stack(list(stats)), *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("size", [1, 17, 1025])
@pytest.mark.parametrize("with_kl", [True, False])
def test_grpo_loss(poisoned, size, with_kl):
    old, advantages = randn(size, seed=1), randn(size, seed=2)
    kl = randn(size, seed=3).abs().requires_grad_() if with_kl else None
    log_prob = (old + 0.3 * randn(size)).requires_grad_()
    ours = grpo(grpo_loss, log_prob, old, advantages, kl, backend="triton")
    torch.testing.assert_close(ours, grpo(grpo_loss_reference, log_prob, old, advantages, kl), rtol=1e-11, atol=1e-11)


def test_grpo_loss_of_several_chunks_with_one_advantage_per_sample(poisoned, small_blocks):
    old, advantages = randn(53, 7, seed=1), randn(53, seed=2)
    log_prob = (old + 0.3 * randn(53, 7)).requires_grad_()
    kl = randn(53, 7, seed=3).abs().requires_grad_()
    ours = grpo(grpo_loss, log_prob, old, advantages, kl, backend="triton")
    torch.testing.assert_close(ours, grpo(grpo_loss_reference, log_prob, old, advantages, kl), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", LOW)
def test_grpo_loss_low_precision(dtype):
    old, advantages = randn(503, dtype=dtype), randn(503, seed=1, dtype=dtype)
    new = (old.float() + 0.1 * randn(503, seed=2)).to(dtype).requires_grad_()
    exact = grpo(grpo_loss_reference, new.detach().double().requires_grad_(), old.double(), advantages.double(), None)
    eager = grpo(grpo_loss_reference, new, old, advantages, None)
    ours = grpo(grpo_loss, new, old, advantages, None, backend="triton")
    for value, reference, target in zip(ours, eager, exact, strict=True):
        assert value.dtype == reference.dtype
        limit = 1.5 * (reference.double() - target).abs().max() + 1e-6
        assert (value.double() - target).abs().max() <= limit


@pytest.mark.parametrize("index", [0, 40])
def test_nan_is_not_hidden(index, small_blocks):
    log_prob = torch.zeros(101)
    log_prob[index] = math.nan
    loss, stats = grpo_loss(log_prob, torch.zeros(101), torch.ones(101), **CLIP, backend="triton")
    assert loss.isnan()
    assert torch.stack(list(stats[2:5])).isnan().all()


def test_before_the_first_update():
    log_prob = randn(7, 3, dtype=torch.float32).requires_grad_()
    advantages = randn(7, dtype=torch.float32)
    loss, stats = grpo_loss(log_prob, log_prob.detach(), advantages, **CLIP, backend="triton")
    assert stats.ratio_min.item() == stats.ratio_max.item() == stats.ratio_mean.item() == 1
    loss.backward()  # nothing lost to ties of the maximum
    torch.testing.assert_close(log_prob.grad, -advantages[:, None].expand(7, 3) / 21)


# ---- sde_step -------------------------------------------------------------------------------------------------------


def sde_inputs(*shape, dtype=torch.float64):
    velocity, sample, outcome, reference = (randn(*shape, seed=s, dtype=dtype) for s in range(4))
    sigma = torch.linspace(1.0, 0.3, shape[0], dtype=torch.float64)
    return velocity, sample, outcome, reference, sigma, sigma - 0.1


def sde(function, v, x, s, s_next, **options):
    """Every field, and the gradient of all of them together."""
    v = v.clone().requires_grad_()
    step = function(v, x, s, s_next, **options)
    total = (step.log_prob * torch.arange(1, len(x) + 1)).sum() + (step.mean * x).sum()
    total = total + (step.next_sample * x).sum() if step.next_sample.requires_grad else total
    total = total if step.kl is None else total + step.kl.sum()
    return [*(t for t in step if t is not None), torch.autograd.grad(total, v)[0]]


@pytest.mark.parametrize("kl_kind", ["exact", "flow_grpo", None])
@pytest.mark.parametrize("draw", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sde_step(poisoned, kind, draw, kl_kind):
    v, x, end, other, s, s_next = sde_inputs(3, 2, 13)
    options = {"kind": kind, "noise" if draw else "next_sample": end}
    if kl_kind is not None:
        options |= {"kl_kind": kl_kind, "reference_velocity": other}
    ours = sde(sde_step, v, x, s, s_next, **options, backend="triton")
    expected = sde(sde_step_reference, v, x, s, s_next, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [13, 203])
def test_sigma_in_every_form_gives_the_same_bits(poisoned, small_blocks, size):
    """A float, a number on the host, of each sample, fp32 or fp64: read as they are, computed in fp64."""
    v, x, end, other, *_ = sde_inputs(3, size, dtype=torch.float32)
    options = {"next_sample": end, "reference_velocity": other, "backend": "triton"}
    s = torch.full((3,), 0.625, dtype=torch.float64)
    expected = sde(sde_step, v, x, s, s - 0.125, **options)
    forms = (0.625, s.float(), s[0], s[0].float(), s.bfloat16(), s[:1].expand(3))
    for now, after in [*((form, form - 0.125) for form in forms), (s.float(), 0.5)]:
        ours = sde(sde_step, v, x, now, after, **options)
        assert all(torch.equal(a, b) for a, b in zip(expected, ours, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_sde_step_of_several_chunks(poisoned, small_blocks, kind):
    v, x, end, other, s, s_next = sde_inputs(2, 203)
    options = {"kind": kind, "noise": end, "reference_velocity": other, "sigma_max": 0.97}
    ours = sde(sde_step, v, x, s, s_next, **options, backend="triton")
    torch.testing.assert_close(ours, sde(sde_step_reference, v, x, s, s_next, **options), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, *LOW])
@pytest.mark.parametrize("kind", KINDS)
def test_first_ratio_is_one(kind, dtype):
    v, x, noise, _, s, s_next = sde_inputs(2, 203, dtype=dtype)
    drawn = sde_step(v, x, s, s_next, noise=noise, kind=kind, backend="triton")
    again = sde_step(v, x, s, s_next, next_sample=drawn.next_sample, kind=kind, return_mean=False, backend="triton")
    assert drawn.next_sample.dtype == dtype
    assert torch.equal(drawn.log_prob, again.log_prob)


@pytest.mark.parametrize("dtype", LOW)
def test_sde_step_low_precision(dtype):
    v, x, end, other, s, s_next = sde_inputs(2, 503, dtype=dtype)
    options = {"next_sample": end, "reference_velocity": other}
    wide = sde(
        sde_step_reference,
        v.double(),
        x.double(),
        s,
        s_next,
        next_sample=end.double(),
        reference_velocity=other.double(),
    )
    eager = sde(sde_step_reference, v, x, s, s_next, **options)
    ours = sde(sde_step, v, x, s, s_next, **options, backend="triton")
    for value, reference, target in zip(ours, eager, wide, strict=True):
        assert value.dtype == reference.dtype
        limit = 1.5 * (reference.double() - target).abs().max() + 1e-6
        assert (value.double() - target).abs().max() <= limit


@pytest.mark.parametrize(
    ("kind", "s", "s_next", "level"),
    [("flow", 0.5, 0.3, 0.0), ("cps", 0.2, 0.0, 0.7), ("dance", 0.4, 0.4, 0.7), ("flow", 0.0, 0.0, 0.7)],
)
def test_deterministic_steps_are_defined(kind, s, s_next, level):
    v, x, noise, other, _, _ = sde_inputs(2, 35)
    v.requires_grad_()
    step = sde_step(
        v, x, s, s_next, noise_level=level, noise=noise, kind=kind, reference_velocity=other, backend="triton"
    )
    assert torch.equal(step.next_sample, step.mean)
    assert (step.log_prob == 0).all()
    assert (step.kl == 0).all()
    (step.log_prob.sum() + step.kl.sum()).backward()
    assert (v.grad == 0).all()


def test_rising_sigmas_show_as_nan():
    v, x, noise, *_ = sde_inputs(2, 35)
    step = sde_step(v, x, torch.tensor(0.5), torch.tensor(0.6), noise=noise, backend="triton")
    assert step.log_prob.isnan().all()


def test_mixed_dtypes_and_views():
    v, x, noise, _, s, s_next = sde_inputs(3, 4, 6, dtype=torch.float32)
    half = v.bfloat16()
    views = sde_step(
        half.mT.contiguous().mT,
        x[:, ::2].repeat_interleave(2, 1)[:, ::1],
        s,
        s_next,
        noise=noise[:1].expand(3, 4, 6),
        backend="triton",
    )
    plain = sde_step_reference(half, x[:, ::2].repeat_interleave(2, 1), s, s_next, noise=noise[:1].expand(3, 4, 6))
    torch.testing.assert_close(views.next_sample, plain.next_sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(views.log_prob, plain.log_prob, rtol=1e-5, atol=1e-5)


def test_empty_batch():
    empty = torch.zeros(0, 4, 5, requires_grad=True)
    step = sde_step(empty, empty.detach(), 0.6, 0.5, noise=empty.detach(), backend="triton")
    assert step.next_sample.shape == step.mean.shape == (0, 4, 5)
    step.log_prob.sum().backward()
    assert empty.grad.shape == (0, 4, 5)
