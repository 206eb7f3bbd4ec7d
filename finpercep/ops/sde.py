"""One step of a flow-matching SDE and its log-probability: Eq. 4, `dx = (v - σ²/2 ∇log p) dt + σ dw`.

Time runs from σ = 1 (noise) to 0 with `dt = sigma_next - sigma < 0`. Every kind is linear in sample and
velocity, `mean = a·x + b·v`, and adds Gaussian noise, `x' = mean + spread·ε`; `_coefficients` is the whole
difference between them:

- `flow` (flow_grpo): `std = noise_level·√(σ/(1-σ))`, `a = 1 + std²/(2σ)·dt`, `b = (1 + std²(1-σ)/(2σ))·dt`,
  `spread = std·√(-dt)`
- `cps` (coefficient preserving): `std = spread = σ'·sin(noise_level·π/2)`, mean `= x0·(1-σ') + x1·√(σ'² -
  std²)`
- `dance` (DanceGRPO): `flow` with the constant `noise_level` in the place of std; reports `std = spread =
  noise_level·√(-dt)`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from finpercep.ops import _backend, _registration
from finpercep.ops._sde_arguments import (
    KINDS,
    as_levels,
    check_images,
    check_options,
    constant,
    draw_noise,
    positions_of,
)


class SDEStep(NamedTuple):
    """What one step returns. Statistics are fp32 (fp64 for fp64 input), images keep the dtype of `sample`."""

    next_sample: Tensor
    """`(B, ...)`; the given one when re-scoring"""
    log_prob: Tensor
    """`(B,)`, mean over the non-batch dimensions, or `(B, H·W)`, mean over channels; 0 where deterministic"""
    mean: Tensor | None
    """`(B, ...)`, mean of the transition; None with `return_mean=False`"""
    std: Tensor
    """`(B,)`, as the kind defines it (see the top of this file); no gradient"""
    kl: Tensor | None
    """`(B,)`, mean over the non-batch dimensions; None without `reference_velocity`"""


class _Coefficients(NamedTuple):
    """Per-sample numbers of one step, each `(B,)` in fp64; see the top of this file."""

    sample: Tensor
    """a"""
    velocity: Tensor
    """b"""
    std: Tensor
    spread: Tensor


def _coefficients(
    kind: str, sigma: Tensor, sigma_next: Tensor, noise_level: float, sigma_max: float | None
) -> _Coefficients:
    dt = sigma_next - sigma
    if kind == "cps":
        # x0 = x - σv, x1 = x + (1-σ)v; √(σ'² - std²) = σ'·cos
        along = sigma_next * math.cos(noise_level * math.pi / 2)
        std = sigma_next * math.sin(noise_level * math.pi / 2)
        return _Coefficients(1 - sigma_next + along, (1 - sigma) * along - sigma * (1 - sigma_next), std, std)
    if kind == "flow":
        start = sigma_next if sigma_max is None else torch.full_like(sigma, sigma_max)
        room = (1 - torch.where(sigma >= 1, start, sigma)).clamp(min=1e-12)
        std = noise_level * (sigma / room).sqrt()
        half = noise_level**2 / (2 * room)  # std²/(2σ), finite at σ = 0
    else:
        std = torch.full_like(sigma, noise_level)
        half = torch.where(sigma > 0, noise_level**2 / (2 * sigma.clamp(min=1e-12)), 0)
    spread = std * (-dt).sqrt()
    return _Coefficients(1 + half * dt, (1 + half * (1 - sigma)) * dt, std if kind == "flow" else spread, spread)


def _per_sample(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Noise levels as fp64 `(B,)`: they are few, and `1 - sigma` near 1 deserves the digits."""
    if isinstance(sigma, Tensor):
        exact = constant(sigma).to(like.device, torch.float64)
        return exact if exact.dim() else exact.expand(like.shape[0])
    return torch.full((like.shape[0],), sigma, dtype=torch.float64, device=like.device)


def sde_step_reference(
    velocity: Tensor,
    sample: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    *,
    noise_level: float = 0.7,
    noise: Tensor | None = None,
    next_sample: Tensor | None = None,
    kind: str = "flow",
    reference_velocity: Tensor | None = None,
    kl_kind: str = "exact",
    sigma_max: float | None = None,
    return_mean: bool = True,
    log_prob: str = "sample",
) -> SDEStep:
    """The definition of `sde_step` in plain PyTorch; same arguments, no checks, `noise` or `next_sample` must
    be given.
    """
    wide = torch.float64 in (velocity.dtype, sample.dtype)
    dtype = torch.float64 if wide else torch.float32
    exact = _coefficients(kind, _per_sample(sigma, sample), _per_sample(sigma_next, sample), noise_level, sigma_max)
    a, b, std, spread = (c.to(dtype) for c in exact)  # each [B]
    ones = (-1,) + (1,) * (sample.dim() - 1)
    others = tuple(range(1, sample.dim()))

    def batch_mean(values: Tensor) -> Tensor:  # [B, ...] -> [B]
        return values.mean(others) if others else values

    mean = a.view(ones) * sample.detach().to(dtype) + b.view(ones) * velocity.to(dtype)
    if next_sample is None:
        assert noise is not None
        next_sample = (mean + spread.view(ones) * noise.detach().to(dtype)).to(sample.dtype)
    else:
        next_sample = next_sample.detach()

    random = ~(spread <= 0)  # NaN, from rising sigmas, stays visible
    square = (next_sample.detach().to(dtype) - mean).square()
    of_positions = log_prob == "position"
    square = square.mean(1).flatten(1) if of_positions else batch_mean(square)  # [B, H·W] or [B]
    if kind == "cps":
        density = -square
    else:
        width = torch.where(random, spread, 1).view(ones[: square.dim()])
        density = -square / (2 * width.square()) - width.log() - math.log(2 * math.pi) / 2
    density = torch.where(random.view(ones[: square.dim()]), density, 0)

    kl = None
    if reference_velocity is not None:
        gap = b.view(ones) * (velocity.to(dtype) - reference_velocity.detach().to(dtype))
        width = torch.where(random, spread if kl_kind == "exact" else std, 1)
        kl = torch.where(random, batch_mean(gap.square()) / (2 * width.square()), 0)
    return SDEStep(next_sample, density, mean.to(sample.dtype) if return_mean else None, std, kl)


def sde_step(
    velocity: Tensor,
    sample: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    *,
    noise_level: float = 0.7,
    noise: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    next_sample: Tensor | None = None,
    kind: str = "flow",
    reference_velocity: Tensor | None = None,
    kl_kind: str = "exact",
    sigma_max: float | None = None,
    return_mean: bool = True,
    log_prob: str = "sample",
    backend: str | None = None,
) -> SDEStep:
    """One flow-matching SDE step and its log-probability, Eq. 4: draws the next sample or re-scores one.

    Args:
        velocity: `(B, ...)`, the model's `v = ε - x_0`. The only input that receives gradient.
        sample: `(B, ...)`, `x_t`.
        sigma, sigma_next: noise levels in [0, 1], falling; a float, `()` or `(B,)`. fp32 and fp64 are read as
            they are. Tensors on a GPU are checked only where the environment has FINPERCEP_CHECK_VALUES=1, since
            that waits for the device: timesteps in place of sigmas give nonsense or NaN there. Of tensors it is not
            checked anywhere that they fall.
        noise_level: η, the amount of randomness.
        noise: standard normal, the shape of `sample`; or
        generator: draws it, one generator per sample. With neither, torch's default generator draws.
        next_sample: score this outcome instead of drawing one. Treated as a constant in `log_prob`.
        kind: `flow` | `cps` | `dance`. `log_prob` is the full Gaussian log-density, for `cps` `-(x' -
            mean)²`, as published.
        reference_velocity: gives `kl`, the divergence of the two transitions.
        kl_kind: `exact` divides by twice the variance of the transition; `flow_grpo` by `2·std²`, which for
            kind `flow` leaves out the `-dt` (the other kinds have no such difference).
        sigma_max: kind `flow` divides by `1 - sigma_max` where sigma is 1; default: `sigma_next`, flow_grpo's
            choice.
        return_mean: the mean is one more image-sized write that the log-probability and KL do not need; False
            saves it.
        log_prob: `sample` averages over all non-batch dimensions; `position` over channels alone, for `(B, C, H, W)`:
            one number per position of the latents, whose mean is the sample's. `kl` is the sample's either way.
        backend: None picks the fastest; "reference", "cpp", "triton" or "cuda" insist.

    Returns:
        `SDEStep`. A drawn `next_sample` and `mean` carry gradient to velocity. A deterministic step (last
        step of `cps`, `noise_level=0`, `sigma == sigma_next`) gives `next_sample = mean`, `log_prob = 0` and
        `kl = 0` without gradient. A drawn sample is scored as rounded to its dtype, so re-scoring it gives a
        ratio of exactly 1.

    Raises:
        ValueError, TypeError: one line that names the argument. RuntimeError: a backend that cannot run here.
    """
    images = {"velocity": velocity, "noise": noise, "next_sample": next_sample, "sample": sample}
    check_images(sample, images | {"reference_velocity": reference_velocity})
    check_options(sigma, sigma_next, sample, noise_level, kind, kl_kind, sigma_max)
    positions = positions_of(log_prob, sample)
    if next_sample is not None and (noise is not None or generator is not None):
        raise ValueError("next_sample: expected no noise and no generator beside it, it is scored and not drawn")
    if noise is not None and generator is not None:
        raise ValueError("noise, generator: expected at most one of the two")
    if next_sample is None and noise is None:
        noise = draw_noise(sample, generator)
    velocity, sample, noise, next_sample, reference_velocity = _backend.savable(
        velocity, sample, noise, next_sample, reference_velocity
    )
    if isinstance(sigma, Tensor):
        sigma = _backend.savable(velocity, sigma)[1]
    if isinstance(sigma_next, Tensor):
        sigma_next = _backend.savable(velocity, sigma_next)[1]
    chosen = _backend.resolve(backend, "sde_step", sample.device, sample.dtype)
    if chosen == "reference":
        return sde_step_reference(
            velocity,
            sample,
            sigma,
            sigma_next,
            noise_level=noise_level,
            noise=noise,
            next_sample=next_sample,
            kind=kind,
            reference_velocity=reference_velocity,
            kl_kind=kl_kind,
            sigma_max=sigma_max,
            return_mean=return_mean,
            log_prob=log_prob,
        )
    drawn, mean, density, std, kl = _backend.operator(chosen, "sde_step")(
        velocity,
        constant(sample),
        as_levels("sigma", sigma, sample),
        as_levels("sigma_next", sigma_next, sample),
        constant(noise),
        constant(next_sample),
        constant(reference_velocity),
        KINDS.index(kind),
        kl_kind == "exact",
        noise_level,
        -1.0 if sigma_max is None else sigma_max,
        return_mean,
        positions,
    )
    return SDEStep(
        drawn if next_sample is None else constant(next_sample),
        density,
        mean if return_mean else None,
        std,
        None if reference_velocity is None else kl,
    )


def _fake(
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
    compute = torch.float64 if torch.float64 in (velocity.dtype, sample.dtype) else torch.float32
    batch = sample.shape[0]
    return (
        sample.new_empty((0,) if noise is None else sample.shape),
        sample.new_empty(sample.shape if return_mean else (0,)),
        sample.new_empty((batch, positions) if positions > 0 else (batch,), dtype=compute),
        sample.new_empty(batch, dtype=compute),
        sample.new_empty(0 if reference_velocity is None else batch, dtype=compute),
    )


def _fake_backward(
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
    return velocity.new_empty(velocity.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    velocity, sample, sigma, sigma_next, _noise, next_sample, reference, *options, _, positions = inputs
    drawn, _, _, std, _ = output
    # Only tensors that exist anyway are kept; backward recomputes the mean from them.
    outcome = drawn if next_sample is None else next_sample
    ctx.save_for_backward(velocity, sample, outcome, sigma, sigma_next, reference)
    ctx.options, ctx.drew = (*options, positions), next_sample is None
    ctx.mark_non_differentiable(std)
    ctx.set_materialize_grads(False)


def _backward(operator, ctx, grad_drawn, grad_mean, grad_log_prob, _, grad_kl):  # type: ignore[no-untyped-def]
    velocity, sample, outcome, sigma, sigma_next, reference = ctx.saved_tensors
    grad = operator(
        grad_drawn if ctx.drew else None,
        grad_mean if grad_mean is not None and grad_mean.shape == sample.shape else None,
        grad_log_prob,
        grad_kl if reference is not None else None,
        velocity,
        sample,
        outcome,
        sigma,
        sigma_next,
        reference,
        *ctx.options,
    )
    return grad, *(None,) * 12


_registration.register(
    "sde_step", fake=_fake, fake_backward=_fake_backward, setup_context=_setup_context, backward=_backward
)
