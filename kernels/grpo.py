"""grpo_loss, Eq. 6: loss and statistics in one pass. Small calls are one launch; larger ones need a second."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from finpercep.kernels import _config as config
from finpercep.kernels._common import accumulation_type, load, store, triton_type

STATS = 8  # the fields of finpercep.ops.GRPOStats, in its order


@triton.jit
def _advantage(advantages, first, lane, inside, steps, A: tl.constexpr):
    """The advantage of each element first + lane: one number for all steps of a sample. 64-bit division once only."""
    sample, step = first // steps, (first % steps).to(tl.int32)
    return load(advantages + sample + (step + lane) // steps, inside, A)


@triton.jit
def _surrogate(log_prob, old_log_prob, advantage, low, high):
    """(log ratio, ratio, unclipped gain, clipped gain); NaN stays NaN."""
    log_ratio = log_prob - old_log_prob
    ratio = tl.exp(log_ratio)
    clipped = tl.where(ratio < low, low, ratio)
    clipped = tl.where(ratio > high, high, clipped)
    return log_ratio, ratio, advantage * ratio, advantage * clipped


@triton.jit
def _write_stats(loss, stats, policy, kl, ratio, smallest, largest, below, above, square, count, beta, A: tl.constexpr):
    """Means of sums, all scalars in fp64."""
    policy, kl, ratio = policy / count, kl / count, ratio / count
    # The extremes skip NaN, a sum does not.
    smallest = tl.where(ratio == ratio, smallest, ratio)
    largest = tl.where(ratio == ratio, largest, ratio)
    tl.store(loss, (policy + beta * kl).to(A))
    tl.store(stats + 0, policy.to(A))
    tl.store(stats + 1, kl.to(A))
    tl.store(stats + 2, ratio.to(A))
    tl.store(stats + 3, smallest.to(A))
    tl.store(stats + 4, largest.to(A))
    tl.store(stats + 5, (below / count).to(A))
    tl.store(stats + 6, (above / count).to(A))
    tl.store(stats + 7, (square / count / 2).to(A))


@triton.jit
def grpo_fwd_kernel(
    log_prob,
    old_log_prob,
    kl,  # [count], kl may be None
    advantages,  # [count / steps]
    loss,
    stats,  # scalar, [8]
    partial,  # [chunks, 8] fp64, or None: then this is the only program
    count,
    steps,
    low: tl.float64,
    high: tl.float64,
    beta: tl.float64,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    low_bound, high_bound = tl.full((), low, A), tl.full((), high, A)
    first = tl.program_id(0).to(tl.int64) * CHUNK
    policy_sum, kl_sum, ratio_sum = tl.zeros([BLOCK], A), tl.zeros([BLOCK], A), tl.zeros([BLOCK], A)
    below, above = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    square_sum, largest = tl.zeros([BLOCK], A), tl.zeros([BLOCK], A)
    smallest = tl.full([BLOCK], float("inf"), A)
    for start in range(0, CHUNK, BLOCK):
        lane = start + tl.arange(0, BLOCK)
        inside = first + lane < count
        new, old = load(log_prob + first + lane, inside, A), load(old_log_prob + first + lane, inside, A)
        advantage = _advantage(advantages, first, lane, inside, steps, A)
        log_ratio, ratio, free, held = _surrogate(new, old, advantage, low_bound, high_bound)
        policy_sum -= tl.where(held < free, held, free)  # masked lanes have no advantage
        ratio_sum += tl.where(inside, ratio, 0.0)
        square_sum += log_ratio * log_ratio
        below += (inside & (ratio < low_bound)).to(tl.int32)
        above += (inside & (ratio > high_bound)).to(tl.int32)
        smallest = tl.where(inside & (ratio < smallest), ratio, smallest)
        largest = tl.where(inside & (ratio > largest), ratio, largest)
        if kl is not None:
            kl_sum += load(kl + first + lane, inside, A)
    policy, divergence = tl.sum(policy_sum, 0).to(tl.float64), tl.sum(kl_sum, 0).to(tl.float64)
    ratio, square = tl.sum(ratio_sum, 0).to(tl.float64), tl.sum(square_sum, 0).to(tl.float64)
    lowest, highest = tl.min(smallest, 0).to(tl.float64), tl.max(largest, 0).to(tl.float64)
    under, over = tl.sum(below, 0).to(tl.float64), tl.sum(above, 0).to(tl.float64)
    if partial is None:
        total = tl.full((), count, tl.float64)
        _write_stats(loss, stats, policy, divergence, ratio, lowest, highest, under, over, square, total, beta, A)
    else:
        mine = partial + tl.program_id(0).to(tl.int64) * 8
        tl.store(mine + 0, policy)
        tl.store(mine + 1, divergence)
        tl.store(mine + 2, ratio)
        tl.store(mine + 3, lowest)
        tl.store(mine + 4, highest)
        tl.store(mine + 5, under)
        tl.store(mine + 6, over)
        tl.store(mine + 7, square)


@triton.jit
def _column(partial, chunk, inside, field, other):
    return tl.load(partial + chunk.to(tl.int64) * 8 + field, mask=inside, other=other)


@triton.jit
def grpo_finish_kernel(partial, loss, stats, chunks, count, beta: tl.float64, A: tl.constexpr, BLOCK: tl.constexpr):
    policy, kl, ratio = (
        tl.zeros([BLOCK], tl.float64),
        tl.zeros([BLOCK], tl.float64),
        tl.zeros([BLOCK], tl.float64),
    )
    below, above = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    square, largest = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    smallest = tl.full([BLOCK], float("inf"), tl.float64)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        inside = chunk < chunks
        policy += _column(partial, chunk, inside, 0, 0.0)
        kl += _column(partial, chunk, inside, 1, 0.0)
        ratio += _column(partial, chunk, inside, 2, 0.0)
        smallest = tl.minimum(smallest, _column(partial, chunk, inside, 3, float("inf")))
        largest = tl.maximum(largest, _column(partial, chunk, inside, 4, 0.0))
        below += _column(partial, chunk, inside, 5, 0.0)
        above += _column(partial, chunk, inside, 6, 0.0)
        square += _column(partial, chunk, inside, 7, 0.0)
    total = tl.full((), count, tl.float64)
    _write_stats(
        loss,
        stats,
        tl.sum(policy, 0),
        tl.sum(kl, 0),
        tl.sum(ratio, 0),
        tl.min(smallest, 0),
        tl.max(largest, 0),
        tl.sum(below, 0),
        tl.sum(above, 0),
        tl.sum(square, 0),
        total,
        beta,
        A,
    )


@triton.jit
def grpo_bwd_kernel(
    grad_loss,
    log_prob,
    old_log_prob,
    advantages,
    grad_log_prob,
    count,
    steps,
    low: tl.float64,
    high: tl.float64,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    low_bound, high_bound = tl.full((), low, A), tl.full((), high, A)
    scale = (-tl.load(grad_loss).to(tl.float64) / tl.full((), count, tl.float64)).to(A)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = first + lane < count
    new, old = load(log_prob + first + lane, inside, A), load(old_log_prob + first + lane, inside, A)
    advantage = _advantage(advantages, first, lane, inside, steps, A)
    _, _, free, held = _surrogate(new, old, advantage, low_bound, high_bound)
    # No gradient where the clipped term is the smaller gain.
    store(grad_log_prob + first + lane, tl.where(held < free, 0.0, scale * free), inside)


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    kl: Tensor | None,
    clip_low: float,
    clip_high: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """See `finpercep::grpo_loss`: (loss, stats)."""
    log_prob, old_log_prob, advantages = (
        log_prob.contiguous(),
        old_log_prob.contiguous(),
        advantages.contiguous(),
    )
    count = log_prob.numel()
    compute = accumulation_type(log_prob.dtype)
    loss, stats = log_prob.new_empty((), dtype=compute), log_prob.new_empty(STATS, dtype=compute)
    chunks = config.ceil_div(count, config.FLAT_CHUNK)
    partial = log_prob.new_empty((chunks, STATS), dtype=torch.float64) if chunks > 1 else None
    beta = beta if kl is not None else 0.0
    grpo_fwd_kernel[(chunks,)](
        log_prob,
        old_log_prob,
        None if kl is None else kl.contiguous(),
        advantages,
        loss,
        stats,
        partial,
        count,
        count // advantages.numel(),
        1 - clip_low,
        1 + clip_high,
        beta,
        A=triton_type(compute),
        BLOCK=config.FLAT_BLOCK,
        CHUNK=config.FLAT_CHUNK,
        num_warps=config.WARPS,
    )
    if partial is not None:
        grpo_finish_kernel[(1,)](
            partial,
            loss,
            stats,
            chunks,
            count,
            beta,
            A=triton_type(compute),
            BLOCK=config.ALL_PARTIALS,
            num_warps=config.ALL_PARTIALS_WARPS,
        )
    return loss, stats


def grpo_loss_backward(
    grad_loss: Tensor,
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """See `finpercep::grpo_loss_backward`: the gradient of `log_prob`."""
    log_prob, old_log_prob, advantages = (
        log_prob.contiguous(),
        old_log_prob.contiguous(),
        advantages.contiguous(),
    )
    count = log_prob.numel()
    grad = torch.empty_like(log_prob)
    grpo_bwd_kernel[(config.ceil_div(count, config.FLAT_BLOCK),)](
        grad_loss,
        log_prob,
        old_log_prob,
        advantages,
        grad,
        count,
        count // advantages.numel(),
        1 - clip_low,
        1 + clip_high,
        A=triton_type(grad_loss.dtype),
        BLOCK=config.FLAT_BLOCK,
        num_warps=config.WARPS,
    )
    return grad
