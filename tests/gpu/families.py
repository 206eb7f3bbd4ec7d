"""Small calls of every operator, with everything that differs between calls in `options`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finpercep import ops


@dataclass(frozen=True)
class Call:
    """`run(operator, *inputs)` gives the outputs; `definition` is the PyTorch reference."""

    name: str
    operator: Callable[..., Any]
    definition: Callable[..., Any]
    run: Callable[..., list[Tensor]]
    inputs: Callable[[], list[Tensor]]  # fp64, on the CPU, fresh numbers
    differentiable: tuple[int, ...] = ()
    partial: tuple[int, ...] = ()  # outputs that take another output as a constant: their gradient is not their slope

    def __str__(self) -> str:
        return self.name


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


def _modulate(batch: int, grid: tuple[int, int], channels: int, side: tuple[int, int], **options: Any) -> Call:
    tokens = grid[0] * grid[1]
    return Call(
        f"modulate-{batch}x{grid}x{channels}-{side}-{options}",
        ops.modulate,
        ops.modulate_reference,
        lambda op, f, d: [op(f, d, grid, **options)],
        lambda: [rand(batch, tokens, channels) - 0.5, rand(batch, 1, *side)],
        (0, 1),
    )


def _target(batch: int, side: tuple[int, int], grid: tuple[int, int], channels: int, normalize: str) -> Call:
    return Call(
        f"target-{batch}x{side}-{grid}x{channels}-{normalize}",
        ops.degradation_target,
        ops.degradation_target_reference,
        lambda op, *t: [op(*t, normalize=normalize, alpha=0.3)],
        lambda: [rand(batch, 3, *side) for _ in range(2)] + [rand(batch, channels, *grid) - 0.5 for _ in range(2)],
        (0, 1, 2, 3),
    )


def _advantage(count: int, group_size: int | None, scale: str) -> Call:
    def run(op: Callable[..., Any], rewards: Tensor) -> list[Tensor]:
        ids = None
        if group_size is None:  # large ids that differ in their last bit only, in no order
            ids = (2**62 + torch.arange(len(rewards), device=rewards.device) * 7919 % 97).to(torch.int64)
        advantages, stats = op(rewards, group_size=group_size, group_ids=ids, scale=scale)
        return [advantages, *(s.to(advantages.dtype) for s in stats)]

    def inputs() -> list[Tensor]:
        rewards = rand(count)
        rewards[: group_size or 3] = 0.25  # a group that teaches nothing
        rewards[-1] = torch.nan
        return [rewards]

    return Call(
        f"advantage-{count}-{group_size}-{scale}", ops.group_advantage, ops.group_advantage_reference, run, inputs
    )


def _grpo(count: int, steps: int) -> Call:
    low, high = 0.1, 0.2

    def run(op: Callable[..., Any], new: Tensor, old: Tensor, advantage: Tensor, kl: Tensor) -> list[Tensor]:
        loss, stats = op(new, old, advantage, clip_low=low, clip_high=high, kl=kl, beta=0.3)
        return [loss, *stats]

    def inputs() -> list[Tensor]:
        """No ratio near a bound: rounding, of inputs to bfloat16 (0.004) or of the ratio, would carry it across."""
        new, old = rand(count, steps) - 1, rand(count, steps) - 1
        for bound in (math.log(1 - low), math.log(1 + high)):
            new = torch.where((new - old - bound).abs() < 0.01, new + 0.03, new)
        return [new, old, rand(count) - 0.5, rand(count, steps)]

    return Call(f"grpo-{count}x{steps}", ops.grpo_loss, ops.grpo_loss_reference, run, inputs, (0, 3))


def _sde(shape: tuple[int, ...], kind: str, draw: bool) -> Call:
    def run(op: Callable[..., Any], v: Tensor, x: Tensor, third: Tensor, other: Tensor) -> list[Tensor]:
        sigma = torch.linspace(1.0, 0.1, len(x), device=x.device, dtype=torch.float64)
        step = op(
            v,
            x,
            sigma,
            sigma - 0.05,
            kind=kind,
            reference_velocity=other,
            **{"noise" if draw else "next_sample": third},
        )
        return [step.next_sample, step.log_prob, step.mean, step.std, step.kl]

    return Call(
        f"sde-{shape}-{kind}-{'draw' if draw else 'score'}",
        ops.sde_step,
        ops.sde_step_reference,
        run,
        lambda: [rand(*shape) - 0.5 for _ in range(4)],
        (0,),
        (1,) if draw else (),
    )


# One of every kind, small: for views, gradients, registration, compilation, capture, streams and the sanitizer.
SMALL: Sequence[Call] = [
    _modulate(2, (4, 4), 64, (16, 24), gate="degradation", resample="area", pool=None),
    _modulate(3, (3, 5), 7, (10, 13), gate="quality", resample="bilinear", pool="mean"),
    _target(2, (33, 47), (5, 4), 19, "minmax"),
    _target(2, (33, 47), (5, 4), 19, "percentile"),
    _advantage(96, 24, "group"),
    _advantage(500, None, "group"),
    _grpo(48, 10),
    _sde((4, 3, 17, 19), "flow", True),
    _sde((4, 3, 17, 19), "flow", False),
]
CALLS: Sequence[Call] = [
    *SMALL,
    _modulate(2, (9, 7), 33, (5, 4), gate="residual", resample="area", pool="mean"),
    _modulate(1, (32, 32), 129, (448, 448), gate="residual", resample="area", pool=None),
    *(_target(2, (33, 47), (5, 4), 19, normalize) for normalize in ("none", "scale")),
    _target(1, (128, 96), (8, 6), 64, "minmax"),
    *(_advantage(96, 24, scale) for scale in ("batch", "none")),
    _advantage(4096, None, "group"),
    _advantage(96 * 1024, 24, "group"),
    _advantage(50_000, None, "batch"),
    _grpo(3, 1),
    _grpo(70_001, 3),
    *(_sde((4, 3, 17, 19), kind, draw) for kind in ("cps", "dance") for draw in (True, False)),
    _sde((3, 16, 64, 64), "flow", True),
]
