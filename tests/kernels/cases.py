"""The launches that are compiled without a GPU: every kernel, in the variants that the launchers use.

They are recorded from the work in `compiled` of the table in `benchmarks/cases.py`; what the table's functions cannot
make (images of bytes, mixed types, one gradient of two, numbers as noise levels) is here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import FAMILIES as OPERATORS
from benchmarks.cases import Work, differentiate, ones_for
from finpercep import ops
from finpercep.kernels import degradation_target, grpo, modulate, sde
from finpercep.ops import _backend

from .launches import Launch, record

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


def meta(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def modulate_launches() -> list[Launch]:
    launches = []
    for gate, resample, pool, dtype, needs in (
        (0, 0, False, BF16, ((True, False), (True, True))),
        (1, 1, True, BF16, ((True, True),)),
        (2, 0, True, F32, ((True, True), (False, True))),
        (0, 1, True, F64, ((True, True),)),
    ):
        features, degradation = meta(16, 1024, 1024, dtype=dtype), meta(16, 1, 448, 448)
        options = (32, 32, gate, resample, pool)
        launches += record(modulate.modulate, features, degradation, *options)
        grad = meta(16, 1024, dtype=dtype) if pool else features
        d = meta(16, 1024, dtype=F64 if dtype == F64 else F32)
        for need_features, need_map in needs:
            arguments = (grad, features, degradation, d, *options, need_features, need_map)
            launches += record(modulate.modulate_backward, *arguments)
    # one tile per image: no second stage
    return launches + record(modulate.modulate, meta(512, 64, 768, dtype=F16), meta(512, 1, 128, 128), 8, 8, 0, 0, True)


def target_launches() -> list[Launch]:
    launches = []
    for image_type, feature_type, normalizations in (
        (BF16, BF16, range(4)),
        (F32, F32, (1,)),
        (torch.uint8, F16, (2,)),
        (F64, F64, (1, 2)),
    ):
        images = [meta(8, 3, 448, 448, dtype=image_type) for _ in range(2)]
        features = [meta(8, 768, 32, 32, dtype=feature_type) for _ in range(2)]
        compute = F64 if image_type == F64 else F32
        out, moments = meta(8, 1, 448, 448, dtype=compute), meta(8, 3, 32, 32, dtype=compute)
        needs = 12 if image_type == torch.uint8 else 15
        for normalize in normalizations:
            options = (0.5, normalize, 2 / 255, 0.995, 0.25)
            launches += record(degradation_target.degradation_target, *images, *features, *options)
            saved = (out, meta(8, 4, dtype=compute), moments, out if normalize == 2 else out.new_empty(0))
            arguments = (out, *images, *features, *saved, 0.5, normalize, 2 / 255, 0.25, needs)
            launches += record(degradation_target.degradation_target_backward, *arguments)
        launches += record(degradation_target.degradation_target, *images, None, None, *options)
    return launches


def grpo_launches() -> list[Launch]:
    launches = []
    for dtype in (BF16, F64):  # beside advantages in fp32
        log_prob, advantages = meta(1 << 20, 1, dtype=dtype), meta(1 << 20)
        loss = meta(dtype=F64 if dtype == F64 else F32)
        kl = log_prob if dtype == F64 else None
        launches += record(grpo.grpo_loss, log_prob, log_prob, advantages, kl, 1e-4, 1e-4, 0.01)
        launches += record(grpo.grpo_loss_backward, loss, log_prob, log_prob, advantages, 1e-4, 1e-4)
    return launches


def sde_launches() -> list[Launch]:
    launches = []
    for dtype, kind, exact in ((BF16, 0, True), (F32, 1, False), (F16, 2, True), (F64, 0, True)):
        image, sigma = meta(32, 16, 64, 64, dtype=dtype), meta(32, dtype=F64)
        rows = meta(32, dtype=F64 if dtype == F64 else F32)
        level = (kind, exact, 0.7, -1.0)
        for positions, scores in ((0, rows), (64 * 64, meta(32, 64 * 64, dtype=rows.dtype))):
            for noise, end, reference, mean in ((image, None, None, True), (None, image, image, False)):
                options = (*level, mean, positions)
                launches += record(sde.sde_step, image, image, sigma, sigma, noise, end, reference, *options)
                grads = (image, image, scores, None) if noise is not None else (None, None, scores, rows)
                arguments = (*grads, image, image, image, sigma, sigma, reference, *level, positions)
                launches += record(sde.sde_step_backward, *arguments)
    small = meta(24, 4, 16, 16)  # one chunk: no second stage
    for sigma in (
        meta(24, dtype=F64),
        meta(24),
        torch.tensor(0.5),
    ):  # of each sample in either type, and a number
        options = (sigma, sigma, small, None, None, 0, True, 0.7, -1.0, True)
        launches += record(sde.sde_step, small, small, *options)
    return launches


SPECIAL = {
    "modulate": modulate_launches,
    "degradation_target": target_launches,
    "grpo_loss": grpo_launches,
    "sde_step": sde_launches,
}


class _Launching(TorchDispatchMode):
    """Operators of this package run their launchers, on meta tensors too, where their fakes would answer."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "finpercep":
            return func(*args, **(kwargs or {}))
        name = func._opname.removesuffix("_triton")
        return getattr(kernels_of(name.removesuffix("_backward")), name)(*args)


def kernels_of(operator: str) -> ModuleType:
    """The file of `finpercep.kernels` with the launchers of an operator."""
    family = getattr(ops, operator).__module__.rpartition(".")[2]
    return importlib.import_module(f"finpercep.kernels.{family}")


def run_on_meta(make: Callable[[], Work]) -> None:
    with torch.device("meta"):
        work = make()
    with _Launching(), mock.patch.object(_backend, "resolve", return_value="triton"):
        leaves = work.leaves(True)
        outputs = work.function("triton")(*leaves)
        if work.differentiable:
            differentiate(outputs, leaves, ones_for(outputs))


def launches(operator: str) -> list[Launch]:
    """Forward and backward of the table's work for compilers, and what the table cannot make."""
    found = [launch for make in OPERATORS[operator].compiled for launch in record(run_on_meta, make)]
    return found + (SPECIAL[operator]() if operator in SPECIAL else [])
