"""Whether a layer runs as one of the kernels that take several of PyTorch's operators at once, on a CPU.

They are no public operators: where this says no, PyTorch's own run, which are the definition. That is in a graph that
is exported, on GPUs, in other types than float32 and under transforms of torch.func.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from finpercep.ops import has_cpp, transformed

PANEL = 16
"""What the kernels' channels are a multiple of, as of `kPanel` in csrc/cpu/multiply.h."""


def alone(layer: nn.Sequential) -> nn.Conv2d | None:
    """The convolution of a `norms.convolution` that has no normalization, if its channels fill panels; else None.

    None, too, where somebody watches by a hook what would not be called.
    """
    conv, norm = layer
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.Identity) or _is_watched(layer, norm):
        return None
    return conv if conv.in_channels % PANEL == 0 and conv.out_channels % PANEL == 0 else None


def takes(operator: str, x: Tensor, *layers: nn.Module) -> bool:
    """Whether `operator` can take the place of convolutions, for this input.

    Args:
        operator: of `torch.ops.finpercep`.
        x: what the first of them gets.
        layers: the convolutions, all with a bias. One that is another module by now, whose `forward` is its own (as
            of those that are trained to be quantized), or that somebody watches by a hook, runs as it is.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    if not has_cpp(operator) or transformed():
        return False
    if not all(isinstance(layer, nn.Conv2d) and type(layer).forward is nn.Conv2d.forward for layer in layers):
        return False
    if _is_watched(*layers):
        return False
    tensors = [x, *(tensor for layer in layers for tensor in (layer.weight, layer.bias))]
    # Not of a subclass, which may hold no numbers (fake tensors), only a part (DTensor), or quantized ones.
    plain = all(type(t) in (Tensor, nn.Parameter) for t in tensors)
    return plain and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


def one_operator(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: in a compiled graph the function is one operator, `finpercep::<name>`, elsewhere it is called.

    What the function keeps between calls, such as prepared weights, is then kept for graphs too. Traced into one, it
    would be computed at each call.

    Args:
        name: of the operator.
        fake: gives results of the right shapes and strides, for arguments without data.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        operator = torch.library.custom_op(f"finpercep::{name}", function, mutates_args=())
        operator.register_fake(fake)

        def run(*given: Any) -> Any:
            return (operator if torch.compiler.is_compiling() else function)(*given)

        return run

    return decorate


def is_trained(*layers: nn.Module) -> bool:
    """Whether somebody may ask for a gradient to the weights of these layers."""
    return torch.is_grad_enabled() and any(part.requires_grad for layer in layers for part in layer.parameters())


def is_differentiated(x: Tensor, *layers: nn.Module) -> bool:
    """Whether somebody may ask for a gradient of what these layers give for `x`."""
    return is_trained(*layers) or (torch.is_grad_enabled() and x.requires_grad)


def _is_watched(*layers: nn.Module) -> bool:
    return any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in layers
    )
