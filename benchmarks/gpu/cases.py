"""What is measured on a GPU: every operator from launch-bound sizes to several GB of traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import cases
from benchmarks.cases import Case, Outputs, Work

FP32, BF16 = torch.float32, torch.bfloat16
FORWARD, BOTH = ("forward",), ("forward", "training")


def advantage_of_ids(count: int, size: int) -> Work:
    """Eq. 5 for groups named by int64 ids, in no order: reads rewards and ids, writes fp32 advantages."""
    work = cases.group_advantage(FP32, count // size, size)
    ids = torch.arange(count) * 7919 % (count // size) + 2**62

    def run(operator: Callable[..., Any], rewards: Tensor, group_ids: Tensor) -> Outputs:
        advantages, stats = operator(rewards, group_ids=group_ids)
        return (advantages, *stats)

    return replace(work, run=run, inputs=(*work.inputs, ids), forward_bytes=work.forward_bytes + 8 * count)


# (operator, dtype, size, directions, inputs), the most telling first: there may be no time for the last.
ROWS = [
    ("group_advantage", FP32, "64x24", FORWARD, partial(cases.group_advantage, FP32, 64, 24)),
    ("group_advantage ids", FP32, "64x24", FORWARD, partial(advantage_of_ids, 64 * 24, 24)),
    ("modulate+pool", BF16, "512x32²x1024", BOTH, partial(cases.modulate, BF16, 512, 32, 1024, 448, "mean")),
    ("modulate", BF16, "256x32²x1024", BOTH, partial(cases.modulate, BF16, 256, 32, 1024, 448, None)),
    ("degradation_target", FP32, "64x512²", BOTH, partial(cases.degradation_target, FP32, 64, 512, 32, 384)),
    ("group_advantage", FP32, "2M x 16", FORWARD, partial(cases.group_advantage, FP32, 1 << 21, 16)),
    ("grpo_loss", FP32, "32M", BOTH, partial(cases.grpo_loss, FP32, 1 << 25)),
    ("sde_step draw", BF16, "256x16x128²", FORWARD, partial(cases.sde_draw, BF16, 256, 16, 128, 128)),
    ("sde_step score", BF16, "256x16x128²", BOTH, partial(cases.sde_score, BF16, 256, 16, 128, 128)),
    ("group_advantage ids", FP32, "256x16", FORWARD, partial(advantage_of_ids, 256 * 16, 16)),
    ("modulate+pool", BF16, "16x32²x1024", BOTH, partial(cases.modulate, BF16, 16, 32, 1024, 448, "mean")),
    ("modulate", BF16, "16x32²x1024", BOTH, partial(cases.modulate, BF16, 16, 32, 1024, 448, None)),
    ("degradation_target", FP32, "4x512²", FORWARD, partial(cases.degradation_target, FP32, 4, 512, 32, 384)),
    ("grpo_loss", FP32, "48x24", BOTH, partial(cases.grpo_loss, FP32, 48 * 24)),
    ("sde_step score", BF16, "4x16x64²", BOTH, partial(cases.sde_score, BF16, 4, 16, 64, 64)),
    ("sde_step draw", BF16, "4x16x64²", FORWARD, partial(cases.sde_draw, BF16, 4, 16, 64, 64)),
    ("modulate", FP32, "512x32²x1024", FORWARD, partial(cases.modulate, FP32, 512, 32, 1024, 448, None)),
    ("sde_step score", FP32, "1024x16x128²", BOTH, partial(cases.sde_score, FP32, 1024, 16, 128, 128)),
]

CASES = [
    Case(operator, direction, dtype, size, make)
    for operator, dtype, size, directions, make in ROWS
    for direction in directions
]
