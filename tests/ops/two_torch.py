"""One build, another torch: every compiled operator against its reference, in this interpreter.

Run by test_build.py with the interpreter that FINPERCEP_OTHER_PYTHON names; needs only torch and numpy there:
    FINPERCEP_OTHER_PYTHON=/path/to/other/bin/python pytest tests/ops/test_build.py -k other_torch
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from finpercep import ops


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result, however nested."""
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result if part is not None for t in flat(part)] if isinstance(result, tuple) else []


def compare(name: str, call: Callable[..., Any], tensors: Sequence[Tensor]) -> None:
    """Values and gradients of the compiled backend against the reference, in fp64."""
    results = []
    for backend in ("cpp", "reference"):
        leaves = [t.clone().requires_grad_() for t in tensors]
        values = flat(call(*leaves, backend=backend))
        total = sum(v.sum() * (i + 1) for i, v in enumerate(values) if v.requires_grad)
        gradients = torch.autograd.grad(total, leaves, allow_unused=True) if isinstance(total, Tensor) else ()
        results.append([*values, *(g for g in gradients if g is not None)])
    assert len(results[0]) == len(results[1]), name
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    print(f"{name}: {len(results[0])} tensors agree")


def main() -> None:
    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    info = ops.backends()
    assert info["available"]["cpp"] is True, info["available"]["cpp"]
    print(f"torch {torch.__version__}, built with {info['build']['torch_built_with']}, {info['build']['simd']}")
    features, degradation = torch.randn(2, 12, 7, **double), torch.rand(2, 1, 9, 11, **double)
    compare("modulate", lambda f, m, **k: ops.modulate(f, m, (3, 4), **k), (features, degradation))
    compare(
        "modulate, pooled",
        lambda f, m, **k: ops.modulate(f, m, (3, 4), pool="mean", **k),
        (features, degradation),
    )
    images = [torch.rand(2, 3, 9, 11, **double) for _ in range(2)]
    maps = [torch.randn(2, 5, 3, 4, **double) for _ in range(2)]
    for normalize in ("none", "minmax", "percentile", "scale"):

        def target(*t: Tensor, normalize: str = normalize, **k: Any) -> Tensor:
            return ops.degradation_target(*t, normalize=normalize, percentile=0.9, **k)

        compare(f"degradation_target {normalize}", target, [*images, *maps])
    rewards = torch.rand(24, **double)
    compare("group_advantage", lambda r, **k: ops.group_advantage(r.detach(), group_size=6, **k), (rewards,))
    log_prob, old = torch.randn(24, **double) * 0.1, torch.randn(24, **double) * 0.1
    advantages = torch.randn(24, **double)
    clip = {"clip_low": 0.1, "clip_high": 0.2}
    compare("grpo_loss", lambda p, **k: ops.grpo_loss(p, old, advantages, **clip, **k)[0], (log_prob,))
    velocity, sample, noise = (torch.randn(2, 3, 4, 4, **double) for _ in range(3))
    sigma, sigma_next = torch.tensor([0.8, 0.6], **double), torch.tensor([0.7, 0.5], **double)
    for kind in ("flow", "cps", "dance"):

        def step(v: Tensor, kind: str = kind, **k: Any) -> tuple[Tensor, ...]:
            out = ops.sde_step(v, sample, sigma, sigma_next, noise=noise, kind=kind, **k)
            return out.next_sample, out.log_prob

        compare(f"sde_step {kind}", step, (velocity,))
    print("all operators agree")


if __name__ == "__main__":
    main()
