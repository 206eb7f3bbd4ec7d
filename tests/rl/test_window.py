"""The steps of the sampler that are trained: MixGRPO's window and Flow-GRPO-Fast's."""

from __future__ import annotations

import pytest

from finpercep.rl.grpo import GRPO, GRPOConfig
from finpercep.rl.window import window_at
from tests.rl.toy import Red, Toy, batch


def test_forward():
    """Two of the steps 1 to 4, three steps of training at each place, and anew behind the end."""
    found = [window_at(step, (1, 5), 2, "forward", 3, 0) for step in range(12)]
    assert found == [(1, 3)] * 3 + [(2, 4)] * 3 + [(3, 5)] * 3 + [(1, 3)] * 3
    assert window_at(7, (1, 5), 0, "forward", 3, 0) == (1, 5)


def test_random():
    """Drawn in the whole window, the same when asked again."""
    found = [window_at(step, (0, 5), 3, "random", 25, 0) for step in range(60)]
    assert set(found) == {(0, 3), (1, 4), (2, 5)}
    assert found == [window_at(step, (0, 5), 3, "random", 25, 0) for step in range(60)]
    assert found != [window_at(step, (0, 5), 3, "random", 25, 1) for step in range(60)]


def test_the_others_are_deterministic():
    """Steps of training 0 and 1 train the sampler's steps 0 and 1 of three; levels are those of these steps."""
    algorithm = GRPO(Toy(), GRPOConfig(steps=4, group_size=2, sliding=1, slide_every=1))
    levels = [algorithm.collect(batch(), Red(), step).tensors["s"].unique().tolist() for step in range(4)]
    assert levels == [[1.0], [0.75], [0.5], [1.0]]


def test_options():
    with pytest.raises(ValueError, match="sliding: expected 0 to 2, the steps in the window, got 3"):
        GRPOConfig(steps=3, sliding=3)
    with pytest.raises(ValueError, match="slide: expected one of forward, random, got 'back'"):
        GRPOConfig(slide="back")
    with pytest.raises(ValueError, match="slide_every: expected at least 1, got 0"):
        GRPOConfig(slide_every=0)
