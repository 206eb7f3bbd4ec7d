"""grpo_loss, Eq. 6."""

import math

import pytest
import torch

from finpercep import ops
from finpercep.ops import _backend
from finpercep.ops.grpo import grpo_loss, grpo_loss_reference

BACKENDS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(not _backend.has_cpp("grpo_loss"), reason="extension not built")),
]
CLIP = {"clip_low": 0.2, "clip_high": 0.3}


def logs(*ratios, dtype=torch.float64):
    return torch.tensor(ratios, dtype=dtype).log().requires_grad_()


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_computed(backend):
    log_prob = logs(1.0, 1.5, 0.5, 1.5, 0.5)
    advantages = torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    zeros = torch.zeros(5, dtype=torch.float64)
    loss, stats = grpo_loss(log_prob, zeros, advantages, **CLIP, backend=backend)
    # -2·1, clipped -1.3, unclipped -0.5, unclipped 1.5, clipped 0.8
    assert loss.item() == pytest.approx((-2 - 1.3 - 0.5 + 1.5 + 0.8) / 5)
    assert stats.policy_loss.item() == loss.item()
    assert stats.kl_loss.item() == 0
    assert stats.ratio_mean.item() == pytest.approx(1.0)
    assert stats.ratio_min.item() == pytest.approx(0.5)
    assert stats.ratio_max.item() == pytest.approx(1.5)
    assert stats.clip_low.item() == pytest.approx(2 / 5)
    assert stats.clip_high.item() == pytest.approx(2 / 5)
    assert stats.approx_kl.item() == pytest.approx(math.log(1.5) ** 2 / 5 + math.log(0.5) ** 2 / 5)
    loss.backward()
    assert log_prob.grad.tolist() == pytest.approx([-2 / 5, 0, -0.5 / 5, 1.5 / 5, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_flow_grpo_formula(backend):
    """mean(max(-A·ratio, -A·clip(ratio))) with clip_range 1e-4, the published training setting."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(4096, generator=generator)
    new = old + 2e-4 * torch.randn(4096, generator=generator)
    advantages = torch.randn(4096, generator=generator).clamp(-5, 5)
    ratio = torch.exp(new.double() - old.double())
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - 1e-4, 1 + 1e-4)
    expected = torch.maximum(unclipped, clipped).mean()
    loss, stats = grpo_loss(new, old, advantages, clip_low=1e-4, clip_high=1e-4, backend=backend)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    # A difference of 1e-4 keeps three digits in fp32; ratio - 1 - log(ratio) would keep none.
    torch.testing.assert_close(stats.approx_kl.double(), ((new.double() - old.double()) ** 2).mean() / 2)
    outside = (ratio - 1).abs() > 1e-4
    assert (stats.clip_low + stats.clip_high).item() == pytest.approx(outside.double().mean().item(), abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_before_the_first_update(backend):
    log_prob = torch.randn(7, 3, requires_grad=True)
    advantages = torch.randn(7)
    loss, stats = grpo_loss(log_prob, log_prob.detach(), advantages, **CLIP, backend=backend)
    assert stats.ratio_min.item() == stats.ratio_max.item() == stats.ratio_mean.item() == 1
    assert stats.clip_low.item() == stats.clip_high.item() == stats.approx_kl.item() == 0
    torch.testing.assert_close(loss, -advantages.mean())
    loss.backward()  # the policy gradient: -A/n, nothing lost to ties of the maximum
    torch.testing.assert_close(log_prob.grad, -advantages[:, None].expand(7, 3) / 21)


@pytest.mark.parametrize("backend", BACKENDS)
def test_advantages_broadcast_over_steps(backend):
    log_prob, old, advantages = torch.randn(5, 4), torch.randn(5, 4), torch.randn(5)
    one, _ = grpo_loss(log_prob, old, advantages, **CLIP, backend=backend)
    full, _ = grpo_loss(log_prob, old, advantages[:, None].expand(5, 4), **CLIP, backend=backend)
    flat, _ = grpo_loss(log_prob.flatten(), old.flatten(), advantages.repeat_interleave(4), **CLIP, backend=backend)
    torch.testing.assert_close(one, full)
    torch.testing.assert_close(one, flat)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kl_term_and_its_gradient(backend):
    log_prob, kl = torch.zeros(4, requires_grad=True), torch.tensor([1.0, 2.0, 3.0, 6.0], requires_grad=True)
    loss, stats = grpo_loss(log_prob, torch.zeros(4), torch.zeros(4), kl=kl, beta=0.5, **CLIP, backend=backend)
    assert loss.item() == pytest.approx(1.5)
    assert stats.kl_loss.item() == pytest.approx(3.0)
    assert stats.policy_loss.item() == 0
    assert not any(field.requires_grad for field in stats)
    (2 * loss).backward()
    assert kl.grad.tolist() == pytest.approx([0.25] * 4)
    assert log_prob.grad.tolist() == [0.0] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_go_to_what_is_trained_alone(backend):
    log_prob, old, advantages = (torch.tensor([0.1, -0.2], requires_grad=True) for _ in range(3))
    grpo_loss(log_prob, old, advantages, **CLIP, backend=backend)[0].backward()
    assert log_prob.grad.tolist() == pytest.approx([-0.05, 0.1])
    assert old.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [0, 17, 40])
def test_nan_is_not_hidden(backend, index):
    log_prob = torch.zeros(41)
    log_prob[index] = math.nan
    loss, stats = grpo_loss(log_prob, torch.zeros(41), torch.ones(41), **CLIP, backend=backend)
    assert loss.isnan()
    assert stats.ratio_mean.isnan()
    assert stats.ratio_min.isnan()
    assert stats.ratio_max.isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_ratios(backend):
    log_prob = torch.tensor([100.0, -120.0, 200.0])
    advantages = torch.tensor([1.0, 1.0, 1.0])
    loss, stats = grpo_loss(log_prob, torch.zeros(3), advantages, **CLIP, backend=backend)
    assert loss.item() == pytest.approx(-(1.3 + 0 + 1.3) / 3)
    assert stats.ratio_max.item() == math.inf
    assert stats.ratio_min.item() == pytest.approx(0, abs=1e-30)


def test_gradcheck_of_the_reference():
    log_prob = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    old, advantages = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    kl = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: grpo_loss_reference(a, old, advantages, kl=b, beta=0.3, **CLIP)[0], (log_prob, kl)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_prob": torch.zeros(0)}, r"log_prob: expected a non-empty \(N,\) or \(N, T\), got \(0,\)"),
        ({"log_prob": torch.zeros(2, 2, 2)}, "log_prob: expected a non-empty"),
        ({"old_log_prob": torch.zeros(3)}, r"old_log_prob: expected shape \(4,\), got \(3,\)"),
        ({"advantages": torch.zeros(4, 1)}, r"advantages: expected shape \(4,\) or \(N,\), got \(4, 1\)"),
        ({"advantages": torch.zeros(4, dtype=torch.int64)}, "advantages: expected a floating-point"),
        ({"kl": torch.zeros(2)}, r"kl: expected shape \(4,\), got \(2,\)"),
        ({"kl": torch.zeros(4, device="meta")}, "kl: expected device cpu as log_prob, got meta"),
        ({"beta": 0.1}, "kl: expected a tensor because beta is 0.1"),
        ({"beta": -0.1}, "kl: expected a tensor because beta is -0.1"),
        ({"clip_high": 0.0}, "clip_high: expected a number > 0, got 0"),
        ({"clip_low": 0.0}, "clip_low: expected"),
        ({"clip_low": 1.5}, "clip_low: expected"),
        ({"clip_high": -0.1}, "clip_high: expected"),
    ],
)
def test_errors_name_the_argument(change, message):
    zeros = torch.zeros(4)
    arguments = {"log_prob": zeros, "old_log_prob": zeros, "advantages": zeros, **CLIP} | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.grpo_loss(**arguments)
