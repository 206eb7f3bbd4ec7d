"""Several processes as one: torchrun or `accelerate launch` start them; each takes its share of the images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from finpercep.runs.devices import take_full_float32

T = TypeVar("T")


def own_device(name: str) -> torch.device:
    """The device of this process: "cuda" without a number is the GPU of its place on the machine (LOCAL_RANK).

    From here on float32 is float32 there, see `take_full_float32`.
    """
    device = torch.device(name)
    take_full_float32(device)
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)  # what NCCL and new tensors go by
    return device


@contextmanager
def together() -> Iterator[None]:
    """What all processes do together; where one of them has ended, an error that says so.

    Raises:
        ConnectionError: another process has ended, or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, in the words of its sockets.
        lost = isinstance(error, dist.DistError) or re.search(r"peer|connection|timed? ?out", str(error), re.IGNORECASE)
        if not lost:
            raise
        raise ConnectionError(
            "processes: expected all of them to go on, got no answer from one, which has ended or hangs; its own "
            "output says why; started again, the run goes on from its last checkpoint"
        ) from error


class Ranks:
    """The processes of a run; one alone, where no launcher says otherwise.

    What they do together raises ConnectionError where one of them has ended.

    Attributes:
        size, rank: how many there are, and which one this is.
    """

    def __init__(self, device: torch.device) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's share of the `count` images of a step; groups stay whole.

        Raises:
            ValueError: they cannot be shared evenly.
        """
        if count % self.size:
            raise ValueError(f"batch: expected a multiple of the {self.size} processes, got {count}")
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes; all of one type."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with together():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def take_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the first process's."""
        if self.size > 1:
            for tensor in tensors:
                with together():
                    dist.broadcast(tensor.detach(), src=0)

    def gathered(self, value: T) -> list[T]:
        """Each process's value, in all of them."""
        if self.size == 1:
            return [value]
        found = [value] * self.size
        with together():
            dist.all_gather_object(found, value)
        return found

    def joined(self, own: Tensor, rows: Tensor, total: int) -> Tensor:
        """The `total` rows of all processes, in one order everywhere; this process's are `own` (N,...) at `rows` (N,).

        Own rows alone carry a gradient: a loss of all rows is the same in every process, and its gradients add up to
        those that one process alone would have. With one process, `own` itself.
        """
        if self.size == 1:
            return own
        whole = own.new_zeros(total, *own.shape[1:])
        whole[rows] = own.detach()
        with together():
            dist.all_reduce(whole)
        return whole.index_copy(0, rows, own)

    def total(self, number: int) -> int:
        """The sum of a number over the processes."""
        return sum(self.gathered(number))

    def agreed(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        with together():
            dist.broadcast_object_list(box, src=0)
        return box[0]
