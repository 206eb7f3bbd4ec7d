"""What torch is told of an operator: shapes without values, gradients, and the Triton kernels as operators."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from finpercep.ops import _backend


def register(
    operator: str,
    *,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Attach shapes and autograd to the compiled operator and to the Triton operator of a family, where they exist.

    `fake_backward` belongs to `<operator>_backward`, and `backward` gets that operator as its first argument; a family
    without gradient leaves the last three out. The Triton operators, `<operator>_triton` and
    `<operator>_backward_triton`, have the signatures of the fakes. Gradients of second order raise: only the reference
    has them.
    """
    # The backward operator, where there is one, is the second.
    names = {operator: fake} if fake_backward is None else {operator: fake, f"{operator}_backward": fake_backward}
    if _backend._has_triton:
        for name, signature in names.items():
            _define_triton(name, signature)
        _attach(names, "_triton", setup_context, backward)
    if _backend.has_cpp(operator):
        _attach(names, "", setup_context, backward)
        if _backend._cuda_extension is not None and torch._C._dispatch_has_kernel_for_dispatch_key(
            f"finpercep::{operator}", "CUDA"
        ):
            _backend._cuda_operators.add(operator)


def _attach(
    names: dict[str, Callable[..., Any]],
    suffix: str,
    setup_context: Callable[..., None] | None,
    backward: Callable[..., Any] | None,
) -> None:
    for name, fake in names.items():
        torch.library.register_fake(f"finpercep::{name}{suffix}", fake)
    if backward is not None:
        forward_name, backward_name = (f"{name}{suffix}" for name in names)
        torch.library.register_autograd(
            f"finpercep::{forward_name}",
            _once(forward_name, partial(backward, getattr(torch.ops.finpercep, backward_name))),
            setup_context=setup_context,
        )


class _FirstOrder(torch.autograd.Function):
    """A gradient as it is, which raises when it is differentiated; `through` is what it depends on."""

    @staticmethod
    def forward(ctx: Any, operator: str, gradient: torch.Tensor, *through: torch.Tensor) -> torch.Tensor:
        ctx.operator = operator
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        raise RuntimeError(f"{ctx.operator}: no gradients of second order; use backend='reference' for them")


def _once(operator: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    """`backward`, whose gradients raise when they are differentiated: silence would be a wrong result."""

    def run(ctx: Any, *grads: torch.Tensor | None) -> Any:
        if not torch.is_grad_enabled():  # the usual case: nobody asked for create_graph=True
            return backward(ctx, *grads)
        with torch.no_grad():
            gradients = backward(ctx, *grads)
        through = [t for t in (*grads, *ctx.saved_tensors) if t is not None]
        return tuple(None if g is None else _FirstOrder.apply(operator, g, *through) for g in gradients)

    return run


def _define_triton(name: str, fake: Callable[..., Any]) -> None:
    """The operator `finpercep::<name>_triton`: `<name>` of the family's file in finpercep.kernels."""
    family = fake.__module__.rpartition(".")[2]

    def launch(*arguments: Any) -> Any:
        kernels = importlib.import_module(f"finpercep.kernels.{family}")
        device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return getattr(kernels, name)(*arguments)

    qualified = f"finpercep::{name}_triton"
    schema = torch.library.infer_schema(fake, mutates_args=())
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, ("cuda", "cpu") if _backend._interpreted else "cuda")(launch)
