"""The GRPO objective: Eq. 6, the clipped surrogate minus `beta` times a KL divergence, as a loss to
minimize."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from finpercep.ops import _backend, _registration


class GRPOStats(NamedTuple):
    """Means over all elements of one call, detached 0-d tensors (fp32; fp64 for fp64 input)."""

    policy_loss: Tensor
    """the clipped surrogate without the KL term"""
    kl_loss: Tensor
    """mean of `kl`, before `beta`; 0 when none was given"""
    ratio_mean: Tensor
    ratio_min: Tensor
    ratio_max: Tensor
    clip_low: Tensor
    """fraction of ratios below `1 - clip_low`"""
    clip_high: Tensor
    """fraction of ratios above `1 + clip_high`"""
    approx_kl: Tensor
    """divergence from the sampling policy, mean of `(log_prob - old_log_prob)² / 2`

    Not `ratio - 1 - log ratio`: steps here have log-ratios near 1e-4, where that difference cancels to
    nothing in fp32.
    """


def grpo_loss_reference(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl: Tensor | None = None,
    beta: float = 0.0,
) -> tuple[Tensor, GRPOStats]:
    """The definition of `grpo_loss` in plain PyTorch; same arguments, no checks."""
    dtype = torch.float64 if log_prob.dtype == torch.float64 else torch.float32
    advantage = advantages.detach().to(dtype)
    if advantage.dim() < log_prob.dim():
        advantage = advantage[:, None]  # [N] -> [N, 1], one advantage for every step
    log_ratio = log_prob.to(dtype) - old_log_prob.detach().to(dtype)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    policy_loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
    kl_loss = policy_loss.new_zeros(()) if kl is None else kl.to(dtype).mean()
    loss = policy_loss if kl is None else policy_loss + beta * kl_loss

    log_ratio, ratio = log_ratio.detach(), ratio.detach()
    stats = GRPOStats(
        policy_loss=policy_loss.detach(),
        kl_loss=kl_loss.detach(),
        ratio_mean=ratio.mean(),
        ratio_min=ratio.amin(),
        ratio_max=ratio.amax(),
        clip_low=(ratio < 1 - clip_low).to(dtype).mean(),
        clip_high=(ratio > 1 + clip_high).to(dtype).mean(),
        approx_kl=log_ratio.square().mean() / 2,
    )
    return loss, stats


def _check(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    kl: Tensor | None,
    beta: float,
) -> None:
    tensors = {"log_prob": log_prob, "old_log_prob": old_log_prob, "advantages": advantages, "kl": kl}
    _backend.require_tensors("kl", **tensors)
    if log_prob.dim() not in (1, 2) or log_prob.numel() == 0:
        raise ValueError(f"log_prob: expected a non-empty (N,) or (N, T), got {tuple(log_prob.shape)}")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
        if tensor.device != log_prob.device:
            raise ValueError(f"{name}: expected device {log_prob.device} as log_prob, got {tensor.device}")
        per_sample = name == "advantages" and tensor.shape == log_prob.shape[:1]
        if tensor.shape != log_prob.shape and not per_sample:
            also = " or (N,)" if name == "advantages" else ""
            raise ValueError(f"{name}: expected shape {tuple(log_prob.shape)}{also}, got {tuple(tensor.shape)}")
    if not 0 < clip_low <= 1:
        raise ValueError(f"clip_low: expected a number in (0, 1], got {clip_low}")
    if not clip_high > 0:
        raise ValueError(f"clip_high: expected a number > 0, got {clip_high}")
    if beta != 0 and kl is None:
        raise ValueError(f"kl: expected a tensor because beta is {beta}, got None (sde_step returns one)")


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl: Tensor | None = None,
    beta: float = 0.0,
    backend: str | None = None,
) -> tuple[Tensor, GRPOStats]:
    """Clipped surrogate and KL penalty, Eq. 6 with its sign turned: a loss to minimize.

    `mean(max(-A·ρ, -A·clip(ρ, 1 - clip_low, 1 + clip_high))) + beta·mean(kl)`, `ρ = exp(log_prob -
    old_log_prob)`.

    Args:
        log_prob: `(N,)`, or `(N, T)` for T steps of N samples. Receives gradient.
        old_log_prob: the same shape; the log-probabilities at sampling time. Detached.
        advantages: `(N,)`, one per sample and used for all its steps, or the shape of `log_prob`. Detached.
        clip_low, clip_high: the trust region is `[1 - clip_low, 1 + clip_high]`.
        kl: the shape of `log_prob`; the divergence from the reference policy as `sde_step` returns it. It is
            used as given: no estimator is applied to it. Receives gradient.
        beta: weight of `mean(kl)`.
        backend: None picks the fastest; "reference", "cpp", "triton" or "cuda" insist.

    Returns:
        the loss (0-d, fp32; fp64 for fp64 `log_prob`) and `GRPOStats` of the same pass. A NaN in any input
        gives a NaN loss.

    Raises:
        ValueError, TypeError: one line that names the argument. RuntimeError: a backend that cannot run here.
    """
    _check(log_prob, old_log_prob, advantages, clip_low, clip_high, kl, beta)
    log_prob, old_log_prob, advantages, kl = _backend.savable(log_prob, old_log_prob, advantages, kl)
    chosen = _backend.resolve(backend, "grpo_loss", log_prob.device, log_prob.dtype)
    if chosen == "reference":
        return grpo_loss_reference(
            log_prob, old_log_prob, advantages, clip_low=clip_low, clip_high=clip_high, kl=kl, beta=beta
        )
    loss, stats = _backend.operator(chosen, "grpo_loss")(
        log_prob, old_log_prob.detach(), advantages.detach(), kl, clip_low, clip_high, beta
    )
    return loss, GRPOStats(*stats.unbind())


def _fake(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    kl: Tensor | None,
    clip_low: float,
    clip_high: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    compute = torch.float64 if log_prob.dtype == torch.float64 else torch.float32
    return log_prob.new_empty((), dtype=compute), log_prob.new_empty(8, dtype=compute)


def _fake_backward(
    grad_loss: Tensor,
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    return log_prob.new_empty(log_prob.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    log_prob, old_log_prob, advantages, kl, *ctx.clip, ctx.beta = inputs
    ctx.save_for_backward(log_prob, old_log_prob, advantages)
    ctx.kl_type = None if kl is None else kl.dtype
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(operator, ctx, grad_loss: Tensor | None, _: Tensor | None):  # type: ignore[no-untyped-def]
    grad_log_prob = grad_kl = None
    if grad_loss is not None:
        log_prob = ctx.saved_tensors[0]
        if ctx.needs_input_grad[0]:
            grad_log_prob = operator(grad_loss, *ctx.saved_tensors, *ctx.clip)
        if ctx.needs_input_grad[3]:  # a mean: the same number everywhere
            grad_kl = (grad_loss * (ctx.beta / log_prob.numel())).to(ctx.kl_type).expand(log_prob.shape)
    return grad_log_prob, None, None, grad_kl, None, None, None


_registration.register(
    "grpo_loss", fake=_fake, fake_backward=_fake_backward, setup_context=_setup_context, backward=_backward
)
