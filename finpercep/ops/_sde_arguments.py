"""What `sde_step` takes: checks that name the argument, noise, and noise levels as the kernels read them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from finpercep.ops import _backend

KINDS = ("flow", "cps", "dance")
KL_KINDS = ("exact", "flow_grpo")
LOG_PROBS = ("sample", "position")


def check_images(sample: Tensor, images: dict[str, Tensor | None]) -> None:
    """Refuse images, by name, that are not as `sample` `(B, ...)` is, or that would receive no gradient they ask for.

    Raises:
        ValueError: another shape or device, or a gradient.
        TypeError: no tensor, or none of floating point.
    """
    _backend.require_tensors("noise", "next_sample", "reference_velocity", **images)
    if sample.dim() == 0 or (sample.shape[0] and not sample.numel()):
        raise ValueError(f"sample: expected (B, ...) with elements in every sample, got {tuple(sample.shape)}")
    for name, image in images.items():
        if image is None:
            continue
        if image.shape != sample.shape:
            raise ValueError(f"{name}: expected shape {tuple(sample.shape)} as sample, got {tuple(image.shape)}")
        if not image.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {image.dtype}")
        if image.device != sample.device:
            raise ValueError(f"{name}: expected device {sample.device} as sample, got {image.device}")
        if name != "velocity" and image.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: gradients go to velocity only, pass {name}.detach()")


def check_options(
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    sample: Tensor,
    noise_level: float,
    kind: str,
    kl_kind: str,
    sigma_max: float | None,
) -> None:
    """Refuse options of `sde_step` that are out of their ranges, and noise levels where looking at them is free.

    Raises:
        ValueError: names the argument.
    """
    _check_sigma("sigma", sigma, sample)
    _check_sigma("sigma_next", sigma_next, sample)
    if not isinstance(sigma, Tensor) and not isinstance(sigma_next, Tensor) and sigma_next > sigma:
        raise ValueError(f"sigma_next: expected at most sigma = {sigma}, got {sigma_next}")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if kl_kind not in KL_KINDS:
        raise ValueError(f"kl_kind: expected one of {', '.join(KL_KINDS)}, got {kl_kind!r}")
    if not 0 <= noise_level <= (1 if kind == "cps" else sys.float_info.max):
        raise ValueError(f"noise_level: expected a number >= 0 (at most 1 for cps), got {noise_level}")
    if sigma_max is not None and not 0 < sigma_max < 1:
        raise ValueError(f"sigma_max: expected None or a number in (0, 1), got {sigma_max}")


def _check_sigma(name: str, sigma: Tensor | float, sample: Tensor) -> None:
    if isinstance(sigma, Tensor):
        if not sigma.is_floating_point() or sigma.shape not in ((), sample.shape[:1]):
            raise ValueError(
                f"{name}: expected a float or a floating-point tensor of shape () or ({sample.shape[0]},), "
                f"got {sigma.dtype} {tuple(sigma.shape)}"
            )
        if _readable(sigma) and sigma.numel():
            low, high = sigma.detach().aminmax()
            if not (low >= 0 and high <= 1):  # NaN too
                raise ValueError(
                    f"{name}: expected noise levels in [0, 1], got {float(low):g} to {float(high):g}; "
                    "timesteps of a scheduler are not its sigmas"
                )
    elif sigma is None or not 0 <= sigma <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {sigma}")


def _readable(values: Tensor) -> bool:
    """Whether a look at the values is free: on the CPU, or anywhere where FINPERCEP_CHECK_VALUES=1 asks for it."""
    if torch.compiler.is_compiling() or is_fake(values) or torch._C._functorch.is_functorch_wrapped_tensor(values):
        return False
    return values.device.type == "cpu" or (
        values.device.type == "cuda" and os.environ.get("FINPERCEP_CHECK_VALUES") == "1"
    )


def positions_of(log_prob: str, sample: Tensor) -> int:
    """H·W where the log-probability of each position is wanted, else 0.

    Raises:
        ValueError: no such log-probability, or a sample that has no positions.
    """
    if log_prob not in LOG_PROBS:
        raise ValueError(f"log_prob: expected one of {', '.join(LOG_PROBS)}, got {log_prob!r}")
    if log_prob == "sample":
        return 0
    if sample.dim() != 4 or 0 in sample.shape[1:]:
        raise ValueError(f"sample: expected (B, C, H, W) with log_prob 'position', got {tuple(sample.shape)}")
    return sample.shape[2] * sample.shape[3]


def draw_noise(sample: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Standard normal noise like `sample` `(B, ...)`, each image from its own generator, whatever batch it is in.

    Args:
        sample: whose shape, type and device the noise has.
        generator: one for each sample; of one sample it can stand alone. None draws from torch's default generator.

    Raises:
        ValueError: not one for each sample.
    """
    if generator is None:
        return torch.randn_like(sample)
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != sample.shape[0]:
        raise ValueError(
            f"generator: expected one per sample, {sample.shape[0]}, got {len(generators)} "
            "(a shared one would make a sample's noise depend on its batch)"
        )
    noise = torch.empty_like(sample)
    for row, one in zip(noise, generators, strict=True):
        row.copy_(torch.randn(row.shape, generator=one, device=one.device, dtype=sample.dtype))
    return noise


def as_levels(name: str, sigma: Tensor | float, like: Tensor) -> Tensor:
    """Noise levels as the kernels read them: fp32 or fp64, `(B,)` or one for all, which may be on the host."""
    if not isinstance(sigma, Tensor):
        # A number on the host goes along with the launch. In a compiled graph it would keep CUDA graphs off.
        device = like.device if torch.compiler.is_compiling() else "cpu"
        return torch.full((), sigma, dtype=torch.float64, device=device)
    exact = constant(sigma)
    if exact.device != like.device:
        if like.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
            raise ValueError(
                f"{name}: expected a float or a tensor on {like.device} while a graph is captured, "
                f"got one on {exact.device}"
            )
        if exact.dim() or exact.device.type != "cpu":
            exact = exact.to(like.device)
    return exact if exact.dtype in (torch.float32, torch.float64) else exact.to(torch.float64)


@overload
def constant(tensor: Tensor) -> Tensor: ...
@overload
def constant(tensor: None) -> None: ...
def constant(tensor: Tensor | None) -> Tensor | None:
    """`tensor` without gradient, itself where it has none: a call of torch less."""
    return tensor.detach() if tensor is not None and tensor.requires_grad else tensor
