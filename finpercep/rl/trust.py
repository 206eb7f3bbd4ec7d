"""How far one update of Flow-GRPO may go: the limits of the ratio, and what holds the model beside it.

ρ is the ratio of a taken step's probability now and at sampling, μ the mean of the transition, σ its standard deviation
(`spread`; std·√(-dt) for the kind "flow").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from finpercep import ops

LIMITS = ("clip", "guard", "dppo")


def spread(kind: str, std: Tensor, s: Tensor, s_next: Tensor) -> Tensor:
    """σ (N,), the standard deviation of a transition, of `SDEStep.std`, which leaves √(-dt) out for "flow"."""
    return std * (s - s_next).to(std).sqrt() if kind == "flow" else std


def gap(mean: Tensor, old_mean: Tensor) -> Tensor:
    """mean|μ - μ_old|² (N,) of means (N,C,h,w), in float32 or, of such means, float64."""
    if mean.dtype != torch.float64:
        mean, old_mean = mean.float(), old_mean.float()
    return (mean - old_mean).square().flatten(1).mean(1)


def guarded(log_prob: Tensor, old_log_prob: Tensor, mean_gap: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """GRPO-Guard's ratio, as log-probabilities: log ρ = (log p - log p_old)·σ + mean|μ - μ_old|²/(2σ).

    What is left is mean(ε·(μ - μ_old)), ε the noise of the step: centered on 0, and of one scale at all noise levels.
    Divergence of the means no longer pushes the ratio below 1. All are (N,); the two that are returned take the places
    of `log_prob` and `old_log_prob`.
    """
    safe = torch.where(sigma > 0, sigma, 1)
    return log_prob * sigma + mean_gap / (2 * safe), old_log_prob * sigma


def kept(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mean_gap: Tensor, sigma: Tensor, bound: float
) -> Tensor:
    """DPPO's mask (N,), 1 or 0: 0 where D = mean|μ - μ_old|²/(2σ²) > `bound` and the update would go on that way.

    That is A > 0 and ρ > 1, or A < 0 and ρ < 1 (Flow-DPPO, arXiv 2606.11025). The ratio itself is not clipped.
    """
    further = advantage * (log_prob - old_log_prob).detach() > 0
    far = mean_gap.detach() / (2 * torch.where(sigma > 0, sigma, 1).square()) > bound
    return (~(further & far)).to(advantage)


def limited_loss(
    limit: str,
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    mean_gap: Tensor | None,
    sigma: Tensor,
    *,
    clip: float,
    bound: float,
    kl: Tensor | None,
    beta: float,
) -> tuple[Tensor, ops.GRPOStats]:
    """Eq. 6 under one of `LIMITS`: the clipped ratio, GRPO-Guard's ratio clipped, or DPPO's mask.

    Args:
        limit: one of `LIMITS`.
        log_prob, old_log_prob: (N,), or with "clip" (N,P) at positions.
        advantage: of their shape.
        mean_gap: `gap` (N,); "clip" needs none.
        sigma: σ (N,).
        clip: the ratio is limited to [1 - clip, 1 + clip].
        bound: of `kept`.
        kl: of the shape of `log_prob`; None adds none.
        beta: weight of its mean.

    Returns:
        The loss (), to minimize, and its statistics.
    """
    if limit == "clip":
        return ops.grpo_loss(log_prob, old_log_prob, advantage, clip_low=clip, clip_high=clip, kl=kl, beta=beta)
    assert mean_gap is not None
    if limit == "guard":
        log_prob, old_log_prob = guarded(log_prob, old_log_prob, mean_gap, sigma)
        return ops.grpo_loss(log_prob, old_log_prob, advantage, clip_low=clip, clip_high=clip, kl=kl, beta=beta)
    advantage = advantage * kept(log_prob, old_log_prob, advantage, mean_gap, sigma, bound)
    return ops.grpo_loss(log_prob, old_log_prob, advantage, clip_low=1.0, clip_high=math.inf, kl=kl, beta=beta)


def norm_hinge(v: Tensor, reference: Tensor) -> Tensor:
    """mean(relu(|v|/|v_ref| - 1)): nothing where the velocity is no longer than the reference's (NormGuard,
    arXiv 2606.27771, that penalizes there alone; the unit, a share of |v_ref|, is ours [open]).
    """
    lengths = [values.flatten(1).norm(dim=1) for values in (v, reference)]
    return torch.relu(lengths[0] / lengths[1].clamp_min(torch.finfo(v.dtype).tiny) - 1).mean()
