"""Training that has gone wrong, noticed without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["FiniteGuard"]

PORTION = 2**24
"""Elements of parameters that are updated at once, and kept meanwhile: 64 MB in float32."""


class FiniteGuard:
    """Takes back every update since a loss or a gradient was not finite, and says so when it is asked.

    Both happen on the device: a step does not wait for it. `check` does, and belongs before anything is saved.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.values = torch.zeros(2, device=device)  # loss and norm of that step

    def step(self, optimizer: torch.optim.Optimizer, number: int, loss: Tensor, norm: Tensor) -> None:
        """`optimizer.step()`, without effect on the parameters where this or an earlier step is not finite.

        Args:
            optimizer: which updates each parameter by itself, as AdamW does; it is asked once for each portion of them.
            number: of the step, for the message.
            loss, norm: () on the device, of the loss and of all gradients.
        """
        values = torch.stack([loss.detach().float(), norm.detach().float()])
        first = ~values.isfinite().all() & (self.failed_step < 0)
        self.failed_step = torch.where(first, number, self.failed_step)
        self.values = torch.where(first, values, self.values)
        groups = optimizer.param_groups
        whole = [group["params"] for group in groups]
        try:  # a portion at a time, so that there never is a second copy of them all
            for group in groups:
                group["params"] = []
            for group, parameters in zip(groups, whole, strict=True):
                for portion in _portions(parameters):
                    group["params"] = portion
                    before = [p.detach().clone() for p in portion]
                    optimizer.step()
                    _restore_where(self.failed_step >= 0, portion, before)
                group["params"] = []
        finally:
            for group, parameters in zip(groups, whole, strict=True):
                group["params"] = parameters

    def check(self) -> None:
        """Wait for the device and look.

        Raises:
            FloatingPointError: a loss or a gradient was not finite; names the step. No weight was updated since.
        """
        step = int(self.failed_step)
        if step < 0:
            return
        loss, norm = self.values.tolist()
        if loss - loss != 0:
            raise FloatingPointError(f"loss at step {step} is {loss}")
        raise FloatingPointError(f"norm of the gradient at step {step} is {norm}")


def _portions(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """One after the other, of `PORTION` elements at most, or of one parameter that has more."""
    portion: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if portion and size + parameter.numel() > PORTION:
            yield portion
            portion, size = [], 0
        portion.append(parameter)
        size += parameter.numel()
    if portion:
        yield portion


@torch.no_grad()
def _restore_where(failed: Tensor, parameters: Iterable[nn.Parameter], before: Iterable[Tensor]) -> None:
    for parameter, old in zip(parameters, before, strict=True):
        parameter.copy_(torch.where(failed, old, parameter))
