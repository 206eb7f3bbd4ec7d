"""What an algorithm has collected to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from finpercep.rewards import Reward
from finpercep.rl.batch import Batch


class DeadGroups(ValueError):
    """Not one group has rewards that differ, so that there is nothing to learn; says what to do.

    Attributes:
        figures: name -> () on the device, for the log.
    """

    def __init__(self, message: str, figures: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.figures = figures


@dataclass(frozen=True)
class Experience:
    """Rows to learn from, in the order in which they are trained.

    Attributes:
        batch: the low-resolution image, and photo, of each of the N rows.
        tensors: name -> (N, ...), what the algorithm's loss needs.
        figures: name -> () on the device, for the log.
        reward: for losses that go through it.
        fresh: no update has been made since it was collected.
        looks: what losses leave to be checked after the step's updates, since looking at values waits for the device;
            a list that the micro-batches share.
        hint: where there are no rows, why, and what to do.
    """

    batch: Batch
    tensors: dict[str, Tensor]
    figures: dict[str, Tensor] = field(default_factory=dict)
    reward: Reward | None = None
    fresh: bool = True
    looks: list[Callable[[], None]] = field(default_factory=list)
    hint: str = ""

    def __len__(self) -> int:
        return len(self.batch)

    def parts(self, size: int) -> Iterator[Experience]:
        """Slices of at most `size` rows: the micro-batches of training."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            cut = {name: tensor[rows] for name, tensor in self.tensors.items()}
            yield replace(self, batch=self.batch[rows], tensors=cut, figures={})
