"""Groups that processes divide: together they are those of a single process."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from finpercep.rl.groups import Groups
from finpercep.rl.rollout import row_seeds

IDS = torch.tensor([7, 9, 7])


def divided(size: int, count: int) -> list[Groups]:
    return [Groups(size, SimpleNamespace(size=count, rank=rank)) for rank in range(count)]


def test_rows_of_all_processes_are_all_rows() -> None:
    parts = divided(6, 3)
    assert [part.rows(2).tolist() for part in parts] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert Groups(3).rows(2).tolist() == list(range(6))


def test_seeds_are_those_of_a_single_process() -> None:
    """Whichever process makes a result, and however many rows of training it becomes; an image may come twice."""
    every = row_seeds(IDS.repeat_interleave(4), 5, "noise")
    assert Groups(4).seeds(IDS, 5, "noise") == every
    for part in divided(4, 2):
        assert part.seeds(IDS, 5, "noise") == [every[row] for row in part.rows(3).tolist()]
    twice = row_seeds(IDS.repeat_interleave(8), 5, "photo")
    (first, second) = (part.seeds(IDS, 5, "photo", times=2) for part in divided(4, 2))
    assert first[:4] + second[:4] == twice[:8]
    assert second[-4:] == twice[-4:]
    assert [draw.initial_seed() % 2**32 for draw in Groups(4).generators(IDS, 5, "noise")] == [s % 2**32 for s in every]


def test_values_of_all_processes_come_together() -> None:
    """The second of two processes, with two results of each of three images."""
    joined = Groups(4, SimpleNamespace(size=2, rank=1, joined=lambda own, rows, total: (rows.tolist(), total)))
    assert joined.whole(torch.zeros(6)) == ([2, 3, 6, 7, 10, 11], 12)
    own = torch.arange(8.0)
    assert Groups(4).whole(own) is own


def test_groups_that_cannot_be_divided() -> None:
    with pytest.raises(
        ValueError, match=r"^algorithm.group_size: expected a multiple of the 3 processes that divide.*got 8$"
    ):
        divided(8, 3)
