"""Python's and NumPy's generators go on where they were, from what a file without objects holds."""

from __future__ import annotations

import random

import numpy as np
import pytest

from finpercep.runs.random_state import load_state_of_others, seed_others, state_of_others
from finpercep.runs.state import read_state, write_state


@pytest.fixture(autouse=True)
def put_back():
    state = state_of_others()
    yield
    load_state_of_others(state)


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]  # noqa: NPY002


def test_they_go_on_where_they_were(tmp_path):
    """Also where each has the second number of a normal pair in store."""
    seed_others(3)
    draw()
    write_state({"random_others": state_of_others()}, tmp_path)
    expected = [draw() for _ in range(3)]
    load_state_of_others(read_state(tmp_path, ["random_others"])["random_others"])
    assert [draw() for _ in range(3)] == expected


def test_a_seed_begins_both_anew():
    seed_others(2**40 + 5)
    first = draw()
    draw()
    seed_others(2**40 + 5)
    assert draw() == first
    seed_others(6)
    assert not set(draw()) & set(first)
