"""What is measured: one case per operator, direction, dtype and size, with the bytes that it must move.

`traffic` counts every input that has to be read and every output that has to be written, once each; it
depends on the operator's definition and never on an implementation. All executors of a case work on the same
inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from finpercep import ops

Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Work:
    """Inputs made, functions ready.

    `run(operator, *inputs)` calls the operator or its reference and returns the tensors; `differentiable` are
    the inputs that receive gradient.
    """

    run: Callable[..., Outputs]
    operator: Callable[..., object]
    definition: Callable[..., object]
    inputs: tuple[Tensor, ...]
    differentiable: tuple[int, ...]
    forward_bytes: int
    backward_bytes: int

    @property
    def reference(self) -> Callable[..., Outputs]:
        """The PyTorch definition on the inputs."""
        return partial(self.run, self.definition)

    def ours(self, backend: str | None = None) -> Callable[..., Outputs]:
        """The operator on the inputs."""
        return partial(self.run, partial(self.operator, backend=backend))

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


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Uniform in [0, 1), on torch's default device."""
    device = torch.get_default_device()
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
    return torch.rand(shape, generator=generator, device=device).to(dtype)


def modulate(dtype: torch.dtype, batch: int, grid: int, channels: int, side: int, pool: str | None) -> Work:
    """Eq. 7. Forward reads features and map and writes the product (or its mean); backward reads them and the
    gradient and writes both gradients."""
    features = _random(batch, grid * grid, channels, dtype=dtype)
    degradation = _random(batch, 1, side, side, dtype=torch.float32, seed=1)
    product = batch * channels * (1 if pool else grid * grid) * features.element_size()
    options = {"grid": (grid, grid), "gate": "residual", "pool": pool}

    def run(operator: Callable[..., Tensor], f: Tensor, d: Tensor) -> Outputs:
        return (operator(f, d, **options),)

    both = _bytes(features, degradation)
    return Work(
        run,
        ops.modulate,
        ops.modulate_reference,
        (features, degradation),
        (0, 1),
        forward_bytes=both + product,
        backward_bytes=2 * both + product,
    )


def degradation_target(dtype: torch.dtype, batch: int, side: int, grid: int, channels: int) -> Work:
    """Fusion for M_gt with min-max. Forward reads images and features and writes the map; backward reads them
    and the map's gradient and writes the gradients of the distorted image and features."""
    a, b = (_random(batch, 3, side, side, dtype=dtype, seed=s) for s in (0, 1))
    fa, fb = (_random(batch, channels, grid, grid, dtype=dtype, seed=s) - 0.5 for s in (2, 3))
    target = batch * side * side * 4

    def run(operator: Callable[..., Tensor], *inputs: Tensor) -> Outputs:
        return (operator(*inputs),)

    reads = _bytes(a, b, fa, fb)
    return Work(
        run,
        ops.degradation_target,
        ops.degradation_target_reference,
        (a, b, fa, fb),
        (1, 3),
        forward_bytes=reads + target,
        backward_bytes=reads + target + _bytes(b, fb),
    )


def group_advantage(dtype: torch.dtype, groups: int, size: int) -> Work:
    """Eq. 5. Reads rewards, writes fp32 advantages; has no backward."""
    rewards = _random(groups * size, dtype=dtype)

    def run(operator: Callable[..., tuple[Tensor, ops.GroupStats]], rewards: Tensor) -> Outputs:
        advantages, stats = operator(rewards, group_size=size)
        return (advantages, *stats)

    return Work(
        run,
        ops.group_advantage,
        ops.group_advantage_reference,
        (rewards,),
        (),
        forward_bytes=_bytes(rewards) + groups * size * 4,
        backward_bytes=0,
    )


def grpo_loss(dtype: torch.dtype, count: int) -> Work:
    """Eq. 6 with statistics. Forward reads log-probabilities and advantages; backward also writes a gradient."""
    old = _random(count, dtype=dtype) - 1
    new = (old + 2e-4 * (_random(count, dtype=dtype, seed=1) - 0.5)).to(dtype)
    advantages = _random(count, dtype=dtype, seed=2) - 0.5

    def run(operator: Callable[..., tuple[Tensor, ops.GRPOStats]], *inputs: Tensor) -> Outputs:
        loss, stats = operator(*inputs, clip_low=1e-4, clip_high=1e-4)
        return (loss, *stats)

    reads = _bytes(new, old, advantages)
    return Work(
        run,
        ops.grpo_loss,
        ops.grpo_loss_reference,
        (new, old, advantages),
        (0,),
        forward_bytes=reads,
        backward_bytes=reads + _bytes(new),
    )


def _sde(dtype: torch.dtype, shape: tuple[int, ...], images: int) -> tuple[list[Tensor], Tensor, Tensor]:
    tensors = [_random(*shape, dtype=dtype, seed=s) - 0.5 for s in range(images)]
    sigma = torch.linspace(0.9, 0.2, shape[0])
    return tensors, sigma, sigma - 0.05


def sde_draw(dtype: torch.dtype, *shape: int) -> Work:
    """Eq. 4 in a rollout: reads velocity, sample and noise, writes the next sample; no gradient, no mean."""
    images, sigma, sigma_next = _sde(dtype, shape, 3)

    def run(operator: Callable[..., ops.SDEStep], velocity: Tensor, sample: Tensor, noise: Tensor) -> Outputs:
        step = operator(velocity, sample, sigma, sigma_next, noise=noise, return_mean=False)
        return step.next_sample, step.log_prob, step.std

    return Work(
        run,
        ops.sde_step,
        ops.sde_step_reference,
        tuple(images),
        (),
        forward_bytes=_bytes(*images, images[0]),
        backward_bytes=0,
    )


def sde_score(dtype: torch.dtype, *shape: int) -> Work:
    """Eq. 4 in training: re-scores a stored outcome, with KL. Forward reads velocity, sample, outcome and
    reference velocity; backward reads the four and writes the velocity's gradient."""
    images, sigma, sigma_next = _sde(dtype, shape, 4)

    def run(operator: Callable[..., ops.SDEStep], v: Tensor, x: Tensor, end: Tensor, other: Tensor) -> Outputs:
        step = operator(v, x, sigma, sigma_next, next_sample=end, reference_velocity=other, return_mean=False)
        assert step.kl is not None
        return step.log_prob, step.kl, step.std

    return Work(
        run,
        ops.sde_step,
        ops.sde_step_reference,
        tuple(images),
        (0,),
        forward_bytes=_bytes(*images),
        backward_bytes=_bytes(*images, images[0]),
    )


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Directions: `forward` without gradient; `backward` alone; `training`, forward with gradient and then
    backward. Work
    can be moved between the two passes: what one implementation stores in forward, at the price of memory, it
    need not compute in backward. So `training` is the comparison that counts, `backward` is shown beside it.
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


def _cases() -> list[Case]:
    fp32, bf16 = torch.float32, torch.bfloat16
    forward, training = ("forward",), ("forward", "training")
    everything = ("forward", "backward", "training")
    rows: list[tuple[str, torch.dtype, str, Sequence[str], Callable[[], Work]]] = [
        ("modulate", fp32, "large", everything, partial(modulate, fp32, 32, 32, 1024, 448, None)),
        ("modulate+pool", fp32, "large", everything, partial(modulate, fp32, 64, 32, 1024, 448, "mean")),
        (
            "degradation_target",
            fp32,
            "large",
            everything,
            partial(degradation_target, fp32, 32, 512, 32, 384),
        ),
        ("group_advantage", fp32, "large", forward, partial(group_advantage, fp32, 1 << 21, 16)),
        ("grpo_loss", fp32, "large", everything, partial(grpo_loss, fp32, 1 << 25)),
        ("sde_step draw", fp32, "large", forward, partial(sde_draw, fp32, 64, 16, 128, 128)),
        ("sde_step score", fp32, "large", everything, partial(sde_score, fp32, 64, 16, 128, 128)),
        ("modulate+pool", bf16, "large", forward, partial(modulate, bf16, 64, 32, 1024, 448, "mean")),
        ("sde_step score", bf16, "large", training, partial(sde_score, bf16, 64, 16, 128, 128)),
        ("group_advantage", fp32, "4096x24", forward, partial(group_advantage, fp32, 4096, 24)),
        ("modulate+pool", fp32, "1x32²x128", training, partial(modulate, fp32, 1, 32, 128, 512, "mean")),
        ("degradation_target", fp32, "1x256²", forward, partial(degradation_target, fp32, 1, 256, 16, 64)),
        ("grpo_loss", fp32, "48x24", training, partial(grpo_loss, fp32, 48 * 24)),
        ("sde_step score", fp32, "4x16x64²", training, partial(sde_score, fp32, 4, 16, 64, 64)),
    ]
    return [
        Case(operator, direction, dtype, size, make)
        for operator, dtype, size, directions, make in rows
        for direction in directions
    ]


CASES = _cases()
