"""The table of operators: what of each is tested on every backend, and what is measured on a CPU and on a GPU.

A new operator needs a function that makes its work, and an entry in `FAMILIES`.

Bytes are counted by the operator's definition and never by an implementation: every input that has to be read and every
output that has to be written, once each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from finpercep import ops

FP32, BF16, FP64 = torch.float32, torch.bfloat16, torch.float64
FORWARD, TRAINING = ("forward",), ("forward", "training")
EVERY = ("forward", "backward", "training")
Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Work:
    """One call of an operator, with its inputs.

    `run(operator, *inputs, *fixed)` calls the operator, or its reference, and returns its tensors. `fixed` are inputs
    whose type is not that of the others: ids, noise levels. `differentiable` are the inputs that receive gradient.
    `detached` are the outputs whose gradient is not their slope, because they take another output as a constant.
    """

    operator: str
    run: Callable[..., Outputs]
    inputs: tuple[Tensor, ...]
    differentiable: tuple[int, ...]
    forward_bytes: int
    backward_bytes: int = 0
    fixed: tuple[Tensor, ...] = ()
    detached: tuple[int, ...] = ()

    def to(self, device: str, dtype: torch.dtype) -> Work:
        """The same work elsewhere, on inputs rounded to `dtype`."""
        inputs, fixed = (x.to(dtype).to(device) for x in self.inputs), (x.to(device) for x in self.fixed)
        return replace(self, inputs=tuple(inputs), fixed=tuple(fixed))

    def function(self, backend: str | None = None) -> Callable[..., Outputs]:
        """The operator as a function of `inputs`; backend "reference" is its PyTorch definition."""
        if backend == "reference":
            operator = getattr(ops, f"{self.operator}_reference")
        else:
            operator = partial(getattr(ops, self.operator), backend=backend)

        def call(*inputs: Tensor) -> Outputs:
            return self.run(operator, *inputs, *self.fixed)

        return call

    def leaves(self, gradient: bool) -> list[Tensor]:
        """The inputs, those that receive gradient as leaves of a graph if `gradient`."""
        wanted = self.differentiable if gradient else ()
        return [x.detach().requires_grad_(i in wanted) for i, x in enumerate(self.inputs)]

    def traffic(self, direction: str) -> int:
        """Bytes that must move in `direction`: forward, backward, or training (both)."""
        forward = self.forward_bytes if direction != "backward" else 0
        return forward + (self.backward_bytes if direction != "forward" else 0)


def ones_for(outputs: Outputs) -> list[Tensor]:
    """The gradients that come in: ones, made before anything is timed, as a training step gets them from its loss."""
    return [torch.ones_like(out) for out in outputs if out.requires_grad]


def differentiate(outputs: Outputs, inputs: Sequence[Tensor], incoming: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of all differentiable outputs, with `incoming` coming in."""
    roots = [out for out in outputs if out.requires_grad]
    return torch.autograd.grad(roots, [x for x in inputs if x.requires_grad], incoming)


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# ---- the work of each operator, on torch's default device ------------------------------------------------------------


def modulate(
    dtype: torch.dtype,
    batch: int,
    grid: tuple[int, int],
    channels: int,
    side: tuple[int, int],
    gate: str = "residual",
    resample: str = "area",
    pool: str | None = None,
) -> Work:
    """Eq. 7. Forward reads features and map and writes the product (or its mean); backward reads them and the
    gradient and writes both gradients."""
    features = torch.rand(batch, math.prod(grid), channels, dtype=dtype) - 0.5
    degradation = torch.rand(batch, 1, *side, dtype=torch.float64 if dtype == torch.float64 else FP32)
    product = batch * channels * (1 if pool else math.prod(grid)) * features.element_size()

    def run(operator: Callable[..., Tensor], f: Tensor, d: Tensor) -> Outputs:
        return (operator(f, d, grid, gate=gate, resample=resample, pool=pool),)

    both = _bytes(features, degradation)
    return Work("modulate", run, (features, degradation), (0, 1), both + product, 2 * both + product)


def degradation_target(
    dtype: torch.dtype,
    batch: int,
    side: tuple[int, int],
    grid: tuple[int, int],
    channels: int,
    normalize: str = "minmax",
    differentiable: tuple[int, ...] = (1, 3),
) -> Work:
    """Fusion for M_gt. Forward reads images and features and writes the map; backward reads them and the map's
    gradient and writes the gradients of the distorted image and features."""
    images = [torch.rand(batch, 3, *side, dtype=dtype) for _ in range(2)]
    features = [torch.rand(batch, channels, *grid, dtype=dtype) - 0.5 for _ in range(2)]
    reads, target = _bytes(*images, *features), batch * math.prod(side) * 4

    def run(operator: Callable[..., Tensor], *inputs: Tensor) -> Outputs:
        return (operator(*inputs, normalize=normalize, alpha=0.25),)

    backward = reads + target + _bytes(images[1], features[1])
    return Work("degradation_target", run, (*images, *features), differentiable, reads + target, backward)


def group_advantage(dtype: torch.dtype, count: int, size: int, ids: bool = False, scale: str = "group") -> Work:
    """Eq. 5, of equal groups or of groups named by large int64 ids in no order. Reads rewards (and ids), writes fp32
    advantages; has no backward. One group teaches nothing, and one reward is no number."""
    rewards = torch.rand(count, dtype=dtype)
    rewards[:size] = 0.25
    rewards[-1] = torch.nan
    fixed = (2**62 + torch.arange(count) * 7919 % (count // size),) if ids else ()

    def run(operator: Callable[..., tuple[Tensor, ops.GroupStats]], rewards: Tensor, *ids: Tensor) -> Outputs:
        groups: dict[str, Any] = {"group_ids": ids[0]} if ids else {"group_size": size}
        advantages, stats = operator(rewards, scale=scale, **groups)
        return (advantages, *stats)

    return Work("group_advantage", run, (rewards,), (), _bytes(rewards, *fixed) + 4 * count, fixed=fixed)


def grpo_loss(dtype: torch.dtype, *shape: int, kl: bool = False) -> Work:
    """Eq. 6 with statistics. Forward reads log-probabilities and advantages; backward also writes a gradient. No ratio
    lies near a bound, across which rounding would carry it."""
    low, high = 0.1, 0.2
    new, old = (torch.rand(shape, dtype=dtype) - 1 for _ in range(2))
    for bound in (math.log(1 - low), math.log(1 + high)):
        new = torch.where((new - old - bound).abs() < 0.01, new + 0.03, new)
    inputs = [new, old, torch.rand(shape[0], dtype=dtype) - 0.5, *([torch.rand(shape, dtype=dtype)] if kl else [])]

    def run(operator: Callable[..., tuple[Tensor, ops.GRPOStats]], *inputs: Tensor) -> Outputs:
        options = {"kl": inputs[3], "beta": 0.3} if kl else {}
        loss, stats = operator(*inputs[:3], clip_low=low, clip_high=high, **options)
        return (loss, *stats)

    reads = _bytes(*inputs)
    backward = _bytes(*inputs[:3]) + (2 if kl else 1) * _bytes(new)
    return Work("grpo_loss", run, tuple(inputs), (0, 3) if kl else (0,), reads, backward)


def sde_step(
    dtype: torch.dtype,
    *shape: int,
    draw: bool = False,
    kl: bool = False,
    mean: bool = False,
    kind: str = "flow",
    position: bool = False,
) -> Work:
    """Eq. 4. In a rollout (`draw`) it reads velocity, sample and noise and writes the next sample. In training it
    reads a stored outcome instead and writes no image; backward reads all again and writes the velocity's gradient.
    With `position` the log-probability has a number for each position, in the type of the arithmetic."""
    images = tuple(torch.rand(shape, dtype=dtype) - 0.5 for _ in range(3 + kl))
    sigma = torch.linspace(1.0, 0.1, shape[0], dtype=torch.float64 if dtype == torch.float64 else FP32)

    def run(operator: Callable[..., ops.SDEStep], v: Tensor, x: Tensor, third: Tensor, *rest: Tensor) -> Outputs:
        *other, now, after = rest
        options = {"noise" if draw else "next_sample": third, "reference_velocity": other[0] if other else None}
        kept = "position" if position else "sample"
        step = operator(v, x, now, after, kind=kind, return_mean=mean, log_prob=kept, **options)
        found = (step.next_sample if draw else None, step.log_prob, step.kl, step.mean if mean else None, step.std)
        return [out for out in found if out is not None]

    reads, image = _bytes(*images), _bytes(images[0])
    scores = image // shape[1] // dtype.itemsize * sigma.itemsize if position else 0
    return Work(
        "sde_step",
        run,
        images,
        (0,),
        forward_bytes=reads + (draw + mean) * image + scores,
        backward_bytes=reads + image + scores,
        fixed=(sigma, sigma - 0.05),
        detached=(1,) if draw else (),
    )


# ---- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One row of a table of measurements.

    Directions: `forward` without gradient; `backward` alone; `training`, forward with gradient and then backward. Work
    can be moved between the two passes: what one implementation stores in forward, at the price of memory, it need not
    compute in backward. So `training` is the comparison that counts, `backward` is shown beside it.
    """

    operator: str
    direction: str
    dtype: torch.dtype
    size: str  # "large": main memory has to be streamed, and the bars apply
    make: Callable[[], Work]

    @property
    def group(self) -> str:
        return f"{self.operator}-{str(self.dtype).removeprefix('torch.')}-{self.size}"

    @property
    def name(self) -> str:
        return f"{self.group}-{self.direction}"


@dataclass(frozen=True)
class Call:
    """Small work for tests, in any type: `make(dtype)`."""

    name: str
    make: Callable[[torch.dtype], Work]

    def __str__(self) -> str:
        return self.name


def _call(build: Callable[..., Work], *sizes: Any, **options: Any) -> Call:
    described = [*map(str, sizes), *(f"{name}={value}" for name, value in options.items())]
    return Call(f"{build.__name__}-{'-'.join(described)}", lambda dtype: build(dtype, *sizes, **options))


def _rows(operator: str, directions: Sequence[str], dtype: torch.dtype, size: str, *build: Any, **options: Any) -> list:
    make = partial(build[0], dtype, *build[1:], **options)
    return [Case(operator, direction, dtype, size, make) for direction in directions]


@dataclass(frozen=True)
class Family:
    """Everything of one operator. `small` is one call of every kind, for views, gradients, registration, capture and
    the sanitizer; `more` are kinds and sizes whose values are checked too. `compiled` is work of usual sizes whose
    Triton kernels, in every variant, are compiled without a GPU. On the GPU the most telling come first: there may be
    no time for the last."""

    small: Sequence[Call]
    more: Sequence[Call]
    cpu: Sequence[Case]
    gpu: Sequence[Case]
    compiled: Sequence[Callable[[], Work]] = ()


GRID, SIDE = (32, 32), (448, 448)
ALL = (0, 1, 2, 3)

# fmt: off
FAMILIES = {
    "modulate": Family(
        small=[
            _call(modulate, 2, (4, 4), 64, (16, 24), gate="degradation"),
            _call(modulate, 3, (3, 5), 7, (10, 13), gate="quality", resample="bilinear", pool="mean"),
        ],
        more=[
            _call(modulate, 2, (9, 7), 33, (5, 4), pool="mean"),
            _call(modulate, 1, GRID, 129, SIDE),
        ],
        cpu=[
            *_rows("modulate", EVERY, FP32, "large", modulate, 32, GRID, 1024, SIDE),
            *_rows("modulate+pool", EVERY, FP32, "large", modulate, 64, GRID, 1024, SIDE, pool="mean"),
            *_rows("modulate+pool", FORWARD, BF16, "large", modulate, 64, GRID, 1024, SIDE, pool="mean"),
            *_rows("modulate+pool", TRAINING, FP32, "1x32²x128", modulate, 1, GRID, 128, (512, 512), pool="mean"),
        ],
        gpu=[
            *_rows("modulate+pool", TRAINING, BF16, "512x32²x1024", modulate, 512, GRID, 1024, SIDE, pool="mean"),
            *_rows("modulate", TRAINING, BF16, "256x32²x1024", modulate, 256, GRID, 1024, SIDE),
            *_rows("modulate+pool", TRAINING, BF16, "16x32²x1024", modulate, 16, GRID, 1024, SIDE, pool="mean"),
            *_rows("modulate", TRAINING, BF16, "16x32²x1024", modulate, 16, GRID, 1024, SIDE),
            *_rows("modulate", FORWARD, FP32, "512x32²x1024", modulate, 512, GRID, 1024, SIDE),
        ],
    ),
    "degradation_target": Family(
        small=[
            _call(degradation_target, 2, (33, 47), (5, 4), 19, normalize=normalize, differentiable=ALL)
            for normalize in ("minmax", "percentile")
        ],
        more=[
            *(_call(degradation_target, 2, (33, 47), (5, 4), 19, normalize=normalize, differentiable=ALL)
              for normalize in ("none", "scale")),
            _call(degradation_target, 1, (128, 96), (8, 6), 64, differentiable=ALL),
        ],
        cpu=[
            *_rows("degradation_target", EVERY, FP32, "large", degradation_target, 32, (512, 512), GRID, 384),
            *_rows("degradation_target", FORWARD, FP32, "1x256²", degradation_target, 1, (256, 256), (16, 16), 64),
        ],
        gpu=[
            *_rows("degradation_target", TRAINING, FP32, "64x512²", degradation_target, 64, (512, 512), GRID, 384),
            *_rows("degradation_target", FORWARD, FP32, "4x512²", degradation_target, 4, (512, 512), GRID, 384),
        ],
    ),
    "group_advantage": Family(
        small=[
            _call(group_advantage, 96, 24),
            _call(group_advantage, 500, 5, ids=True),
        ],
        more=[
            *(_call(group_advantage, 96, 24, scale=scale) for scale in ("batch", "none")),
            _call(group_advantage, 4096, 41, ids=True),
            _call(group_advantage, 96 * 1024, 24),
            _call(group_advantage, 50_000, 500, ids=True, scale="batch"),
        ],
        cpu=[
            *_rows("group_advantage", FORWARD, FP32, "large", group_advantage, 1 << 25, 16),
            *_rows("group_advantage", FORWARD, FP32, "4096x24", group_advantage, 4096 * 24, 24),
        ],
        gpu=[
            *_rows("group_advantage", FORWARD, FP32, "64x24", group_advantage, 64 * 24, 24),
            *_rows("group_advantage ids", FORWARD, FP32, "64x24", group_advantage, 64 * 24, 24, ids=True),
            *_rows("group_advantage", FORWARD, FP32, "2M x 16", group_advantage, 1 << 25, 16),
            *_rows("group_advantage ids", FORWARD, FP32, "256x16", group_advantage, 256 * 16, 16, ids=True),
        ],
        compiled=[
            partial(group_advantage, dtype, count, size, ids=ids, scale=scale)
            for scale, dtype, sizes, counts in (
                ("group", FP32, ((1152, 24), (4095, 3), (1 << 20, 16)), (1152, 4096, 1 << 20)),
                ("batch", FP32, ((4096, 16), (1 << 20, 16)), (4096,)),
                ("none", FP64, ((2048, 16), (2046, 3), (1 << 20, 16)), (2048, 1 << 20)),
                ("group", BF16, ((1152, 24),), (1152,)),
            )
            for count, size, ids in (*((*one, False) for one in sizes), *((count, 16, True) for count in counts))
        ],
    ),
    "grpo_loss": Family(
        small=[_call(grpo_loss, 48, 10, kl=True)],
        more=[_call(grpo_loss, 3, 1, kl=True), _call(grpo_loss, 70_001, 3, kl=True), _call(grpo_loss, 501)],
        cpu=[
            *_rows("grpo_loss", EVERY, FP32, "large", grpo_loss, 1 << 25),
            *_rows("grpo_loss", TRAINING, FP32, "48x24", grpo_loss, 48 * 24),
        ],
        gpu=[
            *_rows("grpo_loss", TRAINING, FP32, "32M", grpo_loss, 1 << 25),
            *_rows("grpo_loss", TRAINING, FP32, "48x24", grpo_loss, 48 * 24),
        ],
        compiled=[
            partial(grpo_loss, FP32, 1152, 1, kl=True),
            partial(grpo_loss, FP32, 1 << 16, 10, kl=True),
            partial(grpo_loss, BF16, 1 << 20, 1),
            partial(grpo_loss, FP64, 1 << 20, 1, kl=True),
        ],
    ),
    "sde_step": Family(
        small=[
            *(_call(sde_step, 4, 3, 17, 19, draw=draw, kl=True, mean=True) for draw in (True, False)),
            *(_call(sde_step, 4, 3, *side, kl=True, position=True) for side in ((17, 19), (16, 16))),
        ],
        more=[
            *(_call(sde_step, 4, 3, 17, 19, draw=draw, kl=True, mean=True, kind=kind)
              for kind in ("cps", "dance") for draw in (True, False)),
            _call(sde_step, 3, 16, 64, 64, draw=True, kl=True, mean=True),
            _call(sde_step, 3, 16, 64, 64),
            *(_call(sde_step, 4, 3, 17, 19, draw=draw, kl=True, mean=True, kind=kind, position=True)
              for kind in ("flow", "cps", "dance") for draw in (True, False)),
            _call(sde_step, 3, 16, 64, 64, draw=True, position=True),
            _call(sde_step, 3, 16, 64, 64, kl=True, position=True),
        ],
        cpu=[
            *_rows("sde_step draw", FORWARD, FP32, "large", sde_step, 64, 16, 128, 128, draw=True),
            *_rows("sde_step score", EVERY, FP32, "large", sde_step, 64, 16, 128, 128, kl=True),
            *_rows("sde_step score", TRAINING, BF16, "large", sde_step, 64, 16, 128, 128, kl=True),
            *_rows("sde_step score", TRAINING, FP32, "4x16x64²", sde_step, 4, 16, 64, 64, kl=True),
            *_rows("sde_step positions", EVERY, FP32, "large", sde_step, 64, 16, 128, 128, kl=True, position=True),
        ],
        gpu=[
            *_rows("sde_step draw", FORWARD, BF16, "256x16x128²", sde_step, 256, 16, 128, 128, draw=True),
            *_rows("sde_step score", TRAINING, BF16, "256x16x128²", sde_step, 256, 16, 128, 128, kl=True),
            *_rows("sde_step score", TRAINING, BF16, "4x16x64²", sde_step, 4, 16, 64, 64, kl=True),
            *_rows("sde_step draw", FORWARD, BF16, "4x16x64²", sde_step, 4, 16, 64, 64, draw=True),
            *_rows("sde_step score", TRAINING, FP32, "1024x16x128²", sde_step, 1024, 16, 128, 128, kl=True),
            *_rows("sde_step positions", TRAINING, BF16, "256x16x128²", sde_step, 256, 16, 128, 128, kl=True,
                   position=True),
        ],
    ),
}
# fmt: on

SMALL_CALLS = [call for family in FAMILIES.values() for call in family.small]
CALLS = [*SMALL_CALLS, *(call for family in FAMILIES.values() for call in family.more)]
CASES = [case for family in FAMILIES.values() for case in family.cpu]
_in_turn = chain.from_iterable(zip_longest(*(family.gpu for family in FAMILIES.values())))
GPU_CASES = [case for case in _in_turn if case is not None]
