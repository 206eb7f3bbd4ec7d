"""Training that has gone wrong, noticed without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["FiniteGuard"]


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
            number: of the step, for the message.
            loss, norm: () on the device, of the loss and of all gradients.
        """
        values = torch.stack([loss.detach().float(), norm.detach().float()])
        first = ~values.isfinite().all() & (self.failed_step < 0)
        self.failed_step = torch.where(first, number, self.failed_step)
        self.values = torch.where(first, values, self.values)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        optimizer.step()
        _restore_where(self.failed_step >= 0, parameters, before)

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


@torch.no_grad()
def _restore_where(failed: Tensor, parameters: Iterable[nn.Parameter], before: Iterable[Tensor]) -> None:
    for parameter, old in zip(parameters, before, strict=True):
        parameter.copy_(torch.where(failed, old, parameter))
