"""Flow coordinates: one way to write every Gaussian model z = α·x0 + σ·ε.

With s = σ/(α+σ) and x = z/(α+σ), every such z is x = (1-s)·x0 + s·ε, and v = ε - x0. An Euler step x + (s'-s)·v is
then exactly a step of DDIM, Eq. 1 is x̂0 = x - s·v, and Eq. 4 is `ops.sde_step`: algorithms and samplers are written
once, for UNets that predict noise and for flow transformers alike.

Noise levels are tensors `()` or `(B,)`, or numbers; everything else is `(B, ...)`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finpercep.runs.devices import uploaded

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
"""What models predict, by diffusers' names: ε; α·ε - σ·x0; x0; ε - x0."""


class Steps(NamedTuple):
    """A sampler's noise levels, falling, from the first to 0, and the timesteps that the model is told.

    Attributes:
        s: n + 1 levels in flow coordinates.
        timesteps: n, one for each step but the end.
    """

    s: tuple[float, ...]
    timesteps: tuple[float, ...]


def placed(values: Tensor, like: Tensor) -> Tensor:
    """Values from the CPU on the device and in the type of `like`; the host does not wait for the device."""
    return uploaded(values.to(like.dtype), like.device)


def per_sample(level: Tensor | float, like: Tensor) -> Tensor:
    """A noise level as it multiplies `like` (B, ...): `()` or (B,1,…,1), of its type. A number stays on the CPU."""
    if not isinstance(level, Tensor):
        return torch.tensor(level, dtype=like.dtype)  # a number to kernels: the host waits for nothing
    level = level.to(like)
    return level.reshape(-1, *[1] * (like.dim() - 1)) if level.dim() else level


def preserving(s: Tensor | float) -> tuple[Tensor, Tensor]:
    """(α, σ) with α² + σ² = 1 at level s: the variance-preserving models of DDPM, DDIM and Stable Diffusion."""
    level = torch.as_tensor(s)
    length = ((1 - level).square() + level.square()).sqrt()
    return (1 - level) / length, level / length


def from_flow(x: Tensor, s: Tensor | float) -> Tensor:
    """z of a variance-preserving model at x: what its network is given."""
    alpha, sigma = preserving(s)
    return x * per_sample(alpha + sigma, x)


def velocity(prediction: Tensor, z: Tensor, alpha: Tensor | float, sigma: Tensor | float, kind: str) -> Tensor:
    """v = ε - x0 of a model's prediction at z = α·x0 + σ·ε.

    Args:
        prediction, z: (B, ...).
        alpha, sigma: of z; for `v_prediction` α² + σ² = 1. An ε-prediction needs α > 0, an x0-prediction σ > 0.
        kind: one of `PREDICTIONS`.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in PREDICTIONS:
        raise ValueError(f"kind: expected one of {', '.join(PREDICTIONS)}, got {kind!r}")
    a, b = per_sample(alpha, z), per_sample(sigma, z)
    if kind == "epsilon":
        return prediction - (z - b * prediction) / a
    if kind == "v_prediction":
        return (b * z + a * prediction) - (a * z - b * prediction)
    if kind == "sample":
        return (z - a * prediction) / b - prediction
    return prediction


def error_weight(kind: str, s: Tensor | float, like: Tensor) -> Tensor | None:
    """What makes |v̂ - v|² the squared error of what a variance-preserving model predicts (Eq. 2, 3); None is 1.

    (1-s)² of ε, s² of x0, (1-s)² + s² of α·ε - σ·x0, as it multiplies `like` (B, ...); of any other kind 1.
    """
    level = per_sample(s, like)
    if kind == "epsilon":
        return (1 - level).square()
    if kind == "sample":
        return level.square()
    return (1 - level).square() + level.square() if kind == "v_prediction" else None


def clean(x: Tensor, s: Tensor | float, v: Tensor) -> Tensor:
    """x̂0 = x - s·v: Eq. 1 in flow coordinates."""
    return x - per_sample(s, x) * v


def noise(x: Tensor, s: Tensor | float, v: Tensor) -> Tensor:
    """ε̂ = x + (1-s)·v."""
    return x + (1 - per_sample(s, x)) * v


def mix(x0: Tensor, epsilon: Tensor, s: Tensor | float) -> Tensor:
    """x = (1-s)·x0 + s·ε."""
    level = per_sample(s, x0)
    return (1 - level) * x0 + level * epsilon


def euler(x: Tensor, s: Tensor | float, s_next: Tensor | float, v: Tensor) -> Tensor:
    """x at s_next, by one deterministic step."""
    return x + (per_sample(s_next, x) - per_sample(s, x)) * v


def scheduler_steps(scheduler: Any, count: int, **options: Any) -> Steps:
    """The steps of a scheduler of diffusers, in flow coordinates.

    Args:
        scheduler: one with `alphas_cumprod` (DDPM, DDIM and their like), or a flow-matching one with `sigmas`, such as
            FlowMatchEulerDiscreteScheduler. Its timesteps are set.
        count: how many steps.
        options: further arguments of its `set_timesteps`, such as `mu` of a shift that depends on the image's size.

    Raises:
        ValueError: no such scheduler, one that clips what the model predicts, one that does not fit its prediction
            type, or of flow matching one whose levels do not fall to 0 in `count` steps.
    """
    config = scheduler.config
    scheduler.set_timesteps(count, **options)
    timesteps = tuple(scheduler.timesteps.tolist())
    if is_flow(scheduler):
        if config.get("prediction_type", "flow_prediction") != "flow_prediction":
            raise ValueError(f"scheduler: expected flow_prediction with flow sigmas, got {config.prediction_type!r}")
        levels = tuple(scheduler.sigmas.double().tolist())
        if len(levels) != count + 1 or levels[-1] != 0 or any(a <= b for a, b in pairwise(levels)):
            shown = ", ".join(f"{level:.3g}" for level in levels)
            raise ValueError(
                f"scheduler: expected {count} steps that fall to 0, got the levels {shown} from "
                f"{type(scheduler).__name__}; save the pipeline with a plain FlowMatchEulerDiscreteScheduler"
            )
        return Steps(levels, timesteps)
    if hasattr(scheduler, "alphas_cumprod"):
        return Steps(_preserving_levels(scheduler), timesteps)
    raise ValueError(
        f"scheduler: expected one with alphas_cumprod or a flow-matching one, got {type(scheduler).__name__}"
    )


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers is for models of flow matching: its sigmas are s."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def _preserving_levels(scheduler: Any) -> tuple[float, ...]:
    config, kind = scheduler.config, scheduler.config.prediction_type
    if kind not in PREDICTIONS[:3]:
        raise ValueError(f"scheduler: expected predictions of {', '.join(PREDICTIONS[:3])}, got {kind!r}")
    if config.get("clip_sample") or config.get("thresholding"):
        raise ValueError("scheduler: expected clip_sample and thresholding off: a clipped prediction is no velocity")
    signal = scheduler.alphas_cumprod.double()[scheduler.timesteps.long()]
    if kind == "epsilon" and bool((signal <= 0).any()):
        raise ValueError(
            "scheduler: expected a v- or x0-prediction at zero signal (rescale_betas_zero_snr), got epsilon"
        )
    final = torch.as_tensor(getattr(scheduler, "final_alpha_cumprod", 1.0), dtype=torch.float64)
    signal = torch.cat([signal, final.reshape(1)])
    alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
    return tuple((sigma / (alpha + sigma)).tolist())
