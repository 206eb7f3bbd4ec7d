"""Groups: the results of one low-quality image, whole in a process or divided among several."""

from __future__ import annotations

import torch
from torch import Tensor

from finpercep.rl.rollout import row_seeds
from finpercep.runs.ranks import Ranks


class Groups:
    """Which results of a group this process makes, and how those of all processes come together.

    Args:
        size: results of each image, of all processes.
        ranks: the processes that divide every group, each of which then has all images; None where groups stay whole.

    Attributes:
        own: results of each image in this process; they lie side by side.

    Raises:
        ValueError: the results cannot be divided evenly.
    """

    def __init__(self, size: int, ranks: Ranks | None = None) -> None:
        count, place = (1, 0) if ranks is None else (ranks.size, ranks.rank)
        if size % count:
            raise ValueError(
                f"algorithm.group_size: expected a multiple of the {count} processes that divide each group, got {size}"
            )
        self.size, self.own, self.ranks = size, size // count, ranks
        self.first = place * self.own

    def rows(self, images: int) -> Tensor:
        """Numbers (images·own,) of this process's results among all (images·size)."""
        own = torch.arange(self.first, self.first + self.own)
        return (torch.arange(images)[:, None] * self.size + own).flatten()

    def seeds(self, ids: Tensor, *names: object, times: int = 1) -> list[int]:
        """`row_seeds` of this process's results of images (B,), each of `times` rows; those of a single process."""
        every = row_seeds(ids.repeat_interleave(self.size * times), *names)
        rows = self.rows(len(ids))[:, None] * times + torch.arange(times)
        return [every[row] for row in rows.flatten().tolist()]

    def generators(self, ids: Tensor, *names: object) -> list[torch.Generator]:
        """A CPU generator for each of this process's results of images (B,), of `seeds`."""
        return [torch.Generator().manual_seed(seed) for seed in self.seeds(ids, *names)]

    def whole(self, own: Tensor) -> Tensor:
        """The results' values (B·size, ...) of all processes, of this one's (B·own, ...)."""
        if self.ranks is None:
            return own
        images = len(own) // self.own
        return self.ranks.joined(own, self.rows(images).to(own.device), images * self.size)
