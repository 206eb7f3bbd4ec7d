"""sde_step, Eq. 4: next sample, log-probability and KL in one pass; backward recomputes the mean.

`enable_fp_fusion=False`: drawing, re-scoring and backward must round the mean alike, or the first ratio is not 1, so
the one fused multiply-add is written out and the compiler adds none.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from finpercep.kernels import _config as config
from finpercep.kernels._common import accumulation_type, load, narrow, store, triton_type, widen

FLOW, CPS, DANCE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # the indices in finpercep.ops.sde.KINDS
HALF_LOG_TWO_PI = tl.constexpr(0.91893853320467274178)


@triton.jit
def _coefficients(sigma, sigma_next, noise_level, cosine, sine, sigma_max, KIND: tl.constexpr):
    """mean = a·x + b·v and x' = mean + spread·ε: (a, b, std, spread), scalars in fp64."""
    level = tl.full((), noise_level, tl.float64)
    dt = sigma_next - sigma
    if KIND == CPS:  # x0 = x - σv, x1 = x + (1-σ)v; √(σ'² - std²) = σ'·cos
        along = sigma_next * cosine
        a = 1 - sigma_next + along
        b = (1 - sigma) * along - sigma * (1 - sigma_next)
        std = sigma_next * sine
        spread = std
    else:
        if KIND == FLOW:
            largest = tl.full((), sigma_max, tl.float64)
            largest = tl.where(largest < 0, sigma_next, largest)
            room = 1 - tl.where(sigma >= 1, largest, sigma)
            room = tl.where(room < 1e-12, 1e-12, room)
            std = level * tl.sqrt(sigma / room)
            half = level * level / (2 * room)  # std²/(2σ), finite at σ = 0
        else:
            std = level
            half = tl.where(sigma > 0, level * level / (2 * tl.where(sigma < 1e-12, 1e-12, sigma)), 0.0)
        a = 1 + half * dt
        b = (1 + half * (1 - sigma)) * dt
        spread = std * tl.sqrt(-dt)
        if KIND == DANCE:
            std = spread
    return a, b, std, spread


@triton.jit
def _levels(sigma, sigma_stride, sigma_value, sigma_next, next_stride, next_value, image):
    """(sigma, sigma_next) of one sample in fp64: what the tensors hold, or without a tensor the value for all."""
    if sigma is None:
        now = tl.full((), sigma_value, tl.float64)
    else:
        now = tl.load(sigma + image * sigma_stride).to(tl.float64)
    if sigma_next is None:
        after = tl.full((), next_value, tl.float64)
    else:
        after = tl.load(sigma_next + image * next_stride).to(tl.float64)
    return now, after


@triton.jit
def _mean(x, v, a, b):
    """The one expression for the mean, see the top of this file."""
    return tl.fma(v, tl.broadcast_to(b, v.shape), a * x)


@triton.jit
def _finish(
    image,
    square,
    gap,
    b,
    std,
    spread,
    size,
    log_prob,
    std_out,
    kl,
    KIND: tl.constexpr,
    EXACT_KL: tl.constexpr,
):
    """Σ(x' - mean)² and Σ(v - v_reference)² of one sample to its statistics. fp64. log_prob is None with positions."""
    square, gap = square / size, gap * b * b / size
    random = (spread <= 0) == 0  # NaN, from rising sigmas, stays visible
    width = tl.where(random, spread, 1.0)
    density = -square
    if KIND != CPS:
        density = -square / (2 * width * width) - tl.log(width) - HALF_LOG_TWO_PI
    if log_prob is not None:
        tl.store(log_prob + image, tl.where(random, density, 0.0).to(log_prob.dtype.element_ty))
    tl.store(std_out + image, std.to(std_out.dtype.element_ty))
    if kl is not None:
        if not EXACT_KL:
            width = tl.where(random, std, 1.0)
        divergence = tl.where(random, gap / (2 * width * width), 0.0)
        tl.store(kl + image, divergence.to(kl.dtype.element_ty))


@triton.jit
def _density(square, channels, spread, KIND: tl.constexpr):
    """Σ(x' - mean)² over the channels of each position to its log-probability. fp64."""
    random = (spread <= 0) == 0  # NaN, from rising sigmas, stays visible
    factor, constant = -1 / channels, 0.0
    if KIND != CPS:
        width = tl.where(random, spread, 1.0)
        factor = factor / (2 * width * width)
        constant = -tl.log(width) - HALF_LOG_TWO_PI
    return tl.where(random, factor * square + constant, 0.0)


@triton.jit
def sde_fwd_kernel(
    velocity,
    sample,  # [B, size]
    sigma,
    sigma_stride,
    sigma_value: tl.float64,
    sigma_next,
    next_stride,
    next_value: tl.float64,  # see _levels
    noise,
    next_sample,  # [B, size], one of them None
    reference,  # [B, size] or None
    drawn,
    mean_out,  # [B, size] or None
    log_prob,  # [B], or [B, positions] with POSITIONS
    std_out,
    kl,  # [B], kl may be None
    partial,  # [B, chunks, 2] fp64, or None: then there is one chunk
    size,
    positions,
    chunks,
    noise_level: tl.float64,
    cosine: tl.float64,
    sine: tl.float64,
    sigma_max: tl.float64,
    KIND: tl.constexpr,
    EXACT_KL: tl.constexpr,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """A chunk of a sample; with POSITIONS, BLOCK positions of it through all channels, of size // positions."""
    program = tl.program_id(0).to(tl.int64)
    image = program // chunks
    now, after = _levels(sigma, sigma_stride, sigma_value, sigma_next, next_stride, next_value, image)
    a64, b64, std, spread64 = _coefficients(now, after, noise_level, cosine, sine, sigma_max, KIND)
    a, b, spread = a64.to(A), b64.to(A), spread64.to(A)
    square, gap = tl.zeros([BLOCK], A), tl.zeros([BLOCK], A)
    place = program % chunks * (BLOCK if POSITIONS else CHUNK) + tl.arange(0, BLOCK)
    for start in range(0, size if POSITIONS else CHUNK, positions if POSITIONS else BLOCK):
        inside = place < positions if POSITIONS else start + place < size
        at = image * size + start + place
        x, v = load(sample + at, inside, A), load(velocity + at, inside, A)
        mean = _mean(x, v, a, b)
        if noise is not None:
            outcome = mean + spread * load(noise + at, inside, A)
            rounded = narrow(outcome, drawn.dtype.element_ty)
            tl.store(drawn + at, rounded, mask=inside)
            outcome = widen(rounded, A)  # scored as it is stored
        else:
            outcome = load(next_sample + at, inside, A)
        if mean_out is not None:
            store(mean_out + at, mean, inside)
        away = tl.where(inside, outcome - mean, 0.0)
        square = tl.fma(away, away, square)
        if reference is not None:
            apart = v - load(reference + at, inside, A)
            gap = tl.fma(apart, apart, gap)
    if POSITIONS:
        scores = _density(square.to(tl.float64), tl.full((), size // positions, tl.float64), spread64, KIND)
        store(log_prob + image * positions + place, scores, place < positions)
    # Across lanes in fp64: whatever the layout that the compiler picks, the rounded sum is the same.
    square_sum, gap_sum = tl.sum(square.to(tl.float64), 0), tl.sum(gap.to(tl.float64), 0)
    if partial is None:
        count = tl.full((), size, tl.float64)
        of_sample = None if POSITIONS else log_prob
        _finish(image, square_sum, gap_sum, b64, std, spread64, count, of_sample, std_out, kl, KIND, EXACT_KL)
    else:
        tl.store(partial + program * 2, square_sum)
        tl.store(partial + program * 2 + 1, gap_sum)


@triton.jit
def sde_finish_kernel(
    partial,
    sigma,
    sigma_stride,
    sigma_value: tl.float64,
    sigma_next,
    next_stride,
    next_value: tl.float64,
    log_prob,  # [B], or None with positions
    std_out,
    kl,
    size,
    chunks,
    noise_level: tl.float64,
    cosine: tl.float64,
    sine: tl.float64,
    sigma_max: tl.float64,
    KIND: tl.constexpr,
    EXACT_KL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    square, gap = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        at = partial + (image * chunks + chunk) * 2
        square += tl.load(at, mask=chunk < chunks, other=0.0)
        gap += tl.load(at + 1, mask=chunk < chunks, other=0.0)
    now, after = _levels(sigma, sigma_stride, sigma_value, sigma_next, next_stride, next_value, image)
    _, b, std, spread = _coefficients(now, after, noise_level, cosine, sine, sigma_max, KIND)
    count = tl.full((), size, tl.float64)
    _finish(image, tl.sum(square, 0), tl.sum(gap, 0), b, std, spread, count, log_prob, std_out, kl, KIND, EXACT_KL)


@triton.jit
def sde_bwd_kernel(
    grad_drawn,
    grad_mean,  # [B, size] or None
    grad_log_prob,  # [B], [B, positions] with POSITIONS, or None
    grad_kl,  # [B] or None
    velocity,
    sample,
    next_sample,
    reference,  # [B, size], reference may be None
    sigma,
    sigma_stride,
    sigma_value: tl.float64,
    sigma_next,
    next_stride,
    next_value: tl.float64,
    grad_velocity,
    size,
    positions,
    chunks,
    noise_level: tl.float64,
    cosine: tl.float64,
    sine: tl.float64,
    sigma_max: tl.float64,
    KIND: tl.constexpr,
    EXACT_KL: tl.constexpr,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """grad = outcome·(x' - mean) + b·(grad_drawn + grad_mean) + gap·(v - v_reference), in the parts of forward"""
    program = tl.program_id(0).to(tl.int64)
    image = program // chunks
    now, after = _levels(sigma, sigma_stride, sigma_value, sigma_next, next_stride, next_value, image)
    a64, b64, std, spread = _coefficients(now, after, noise_level, cosine, sine, sigma_max, KIND)
    a, b = a64.to(A), b64.to(A)
    random = (spread <= 0) == 0
    count = tl.full((), size, tl.float64)
    place = program % chunks * (BLOCK if POSITIONS else CHUNK) + tl.arange(0, BLOCK)
    if grad_log_prob is not None:
        sharpness = 2.0
        if KIND != CPS:
            sharpness = 1 / tl.where(random, spread * spread, 1.0)
        if POSITIONS:
            slope = tl.where(random, b64 * sharpness / tl.full((), size // positions, tl.float64), 0.0).to(A)
            outcome_weight = slope * load(grad_log_prob + image * positions + place, place < positions, A)
        else:
            outcome_weight = tl.load(grad_log_prob + image).to(tl.float64) * b64 * sharpness / count
            outcome_weight = tl.where(random, outcome_weight, 0.0).to(A)
    if grad_kl is not None:
        width = spread if EXACT_KL else std
        width = tl.where(random, width, 1.0)
        gap_weight = tl.load(grad_kl + image).to(tl.float64) * b64 * b64 / (width * width * count)
        gap_weight = tl.where(random, gap_weight, 0.0).to(A)
    for start in range(0, size if POSITIONS else CHUNK, positions if POSITIONS else BLOCK):
        inside = place < positions if POSITIONS else start + place < size
        at = image * size + start + place
        grad = tl.zeros([BLOCK], A)
        if (grad_log_prob is not None) or (grad_kl is not None):
            v = load(velocity + at, inside, A)
        if grad_log_prob is not None:
            mean = _mean(load(sample + at, inside, A), v, a, b)
            grad += outcome_weight * (load(next_sample + at, inside, A) - mean)
        if grad_kl is not None:
            grad += gap_weight * (v - load(reference + at, inside, A))
        if grad_drawn is not None:
            grad += b * load(grad_drawn + at, inside, A)
        if grad_mean is not None:
            grad += b * load(grad_mean + at, inside, A)
        store(grad_velocity + at, grad, inside)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _level_arguments(*levels: Tensor) -> list[Tensor | int | float | None]:
    """(tensor or None, stride, value) of each. One number that is on the host goes along with the launch."""
    arguments: list[Tensor | int | float | None] = []
    for level in levels:
        alone = level.numel() == 1
        known = alone and level.device.type == "cpu"
        arguments += [
            None if known else level.contiguous(),
            0 if alone else 1,
            level.item() if known else 0.0,
        ]
    return arguments


def _level(noise_level: float, sigma_max: float) -> tuple[float, float, float, float]:
    angle = math.pi / 2 * noise_level
    return noise_level, math.cos(angle), math.sin(angle), sigma_max


def _chunks(size: int, positions: int) -> int:
    """Programs of a sample."""
    if positions > 0:
        return config.ceil_div(positions, config.FLAT_BLOCK)
    return config.ceil_div(size, config.FLAT_CHUNK)


def sde_step(
    velocity: Tensor,
    sample: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    noise: Tensor | None,
    next_sample: Tensor | None,
    reference_velocity: Tensor | None,
    kind: int,
    exact_kl: bool,
    noise_level: float,
    sigma_max: float,
    return_mean: bool,
    positions: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `finpercep::sde_step`: (next_sample, mean, log_prob, std, kl), empty where not asked for."""
    velocity, sample = velocity.contiguous(), sample.contiguous()
    levels = _level_arguments(sigma, sigma_next)
    batch, like = sample.shape[0], sample
    compute = accumulation_type(velocity.dtype, sample.dtype)
    drawn = like.new_empty((0,) if noise is None else like.shape)
    mean = like.new_empty(like.shape if return_mean else (0,))
    log_prob = like.new_empty((batch, positions) if positions > 0 else (batch,), dtype=compute)
    std = like.new_empty(batch, dtype=compute)
    kl = like.new_empty(0 if reference_velocity is None else batch, dtype=compute)
    if batch == 0:
        return drawn, mean, log_prob, std, kl
    size = sample.numel() // batch
    chunks = _chunks(size, positions)
    partial = like.new_empty((batch, chunks, 2), dtype=torch.float64) if chunks > 1 else None
    level = _level(noise_level, sigma_max)
    kl_out = None if reference_velocity is None else kl
    sde_fwd_kernel[(batch * chunks,)](
        velocity,
        sample,
        *levels,
        _contiguous(noise),
        _contiguous(next_sample),
        _contiguous(reference_velocity),
        None if noise is None else drawn,
        mean if return_mean else None,
        log_prob,
        std,
        kl_out,
        partial,
        size,
        positions,
        chunks,
        *level,
        KIND=kind,
        EXACT_KL=exact_kl,
        A=triton_type(compute),
        BLOCK=config.FLAT_BLOCK,
        CHUNK=config.FLAT_CHUNK,
        POSITIONS=positions > 0,
        num_warps=config.WARPS,
        enable_fp_fusion=False,
    )
    if partial is not None:
        sde_finish_kernel[(batch,)](
            partial,
            *levels,
            None if positions > 0 else log_prob,
            std,
            kl_out,
            size,
            chunks,
            *level,
            KIND=kind,
            EXACT_KL=exact_kl,
            BLOCK=config.PARTIALS,
            num_warps=config.WARPS,
            enable_fp_fusion=False,
        )
    return drawn, mean, log_prob, std, kl


def sde_step_backward(
    grad_next_sample: Tensor | None,
    grad_mean: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_kl: Tensor | None,
    velocity: Tensor,
    sample: Tensor,
    next_sample: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    reference_velocity: Tensor | None,
    kind: int,
    exact_kl: bool,
    noise_level: float,
    sigma_max: float,
    positions: int = 0,
) -> Tensor:
    """See `finpercep::sde_step_backward`: the gradient of velocity."""
    velocity, sample, next_sample = velocity.contiguous(), sample.contiguous(), next_sample.contiguous()
    grad = torch.empty_like(velocity)
    batch = sample.shape[0]
    if batch == 0:
        return grad
    size = sample.numel() // batch
    chunks = _chunks(size, positions)
    sde_bwd_kernel[(batch * chunks,)](
        _contiguous(grad_next_sample),
        _contiguous(grad_mean),
        _contiguous(grad_log_prob),
        _contiguous(grad_kl),
        velocity,
        sample,
        next_sample,
        _contiguous(reference_velocity),
        *_level_arguments(sigma, sigma_next),
        grad,
        size,
        positions,
        chunks,
        *_level(noise_level, sigma_max),
        KIND=kind,
        EXACT_KL=exact_kl,
        A=triton_type(accumulation_type(velocity.dtype, sample.dtype)),
        BLOCK=config.FLAT_BLOCK,
        CHUNK=config.FLAT_CHUNK,
        POSITIONS=positions > 0,
        num_warps=config.WARPS,
        enable_fp_fusion=False,
    )
    return grad
