"""A rollout by the SDE: what it says of its steps is what was done, and nothing else is random."""

from __future__ import annotations

import torch

from finpercep import ops
from finpercep.rl.coordinates import euler
from finpercep.rl.rollout import initial_noise, sample_generators
from finpercep.rl.sde_rollout import mean_std, sde_rollout
from tests.rl.toy import Toy, batch


def test_steps_inside_of_the_window_are_random_and_kept() -> None:
    """By hand, from the same draws: Euler, one step of Eq. 4, Euler to the end."""
    given, generator = batch(), Toy().requires_grad_(False)
    draws, again = (sample_generators(given.ids, "noise") for _ in range(2))
    start = initial_noise(generator, given, draws)
    taken, images = sde_rollout(generator, given, start, draws, 3, (1, 2), noise_level=0.5, kind="dance")

    condition, (first, second, third, end) = generator.condition(given), generator.steps(3).s
    x = initial_noise(generator, given, again)
    x = euler(x, first, second, generator.velocity(x, x.new_full((len(x),), first), condition))
    noise = torch.stack([torch.randn(x.shape[1:], generator=draw) for draw in again]).to(x)
    v = generator.velocity(x, x.new_full((len(x),), second), condition)
    after = ops.sde_step(v, x, second, third, noise_level=0.5, noise=noise, kind="dance")
    assert torch.equal(taken["x"], x[:, None])
    assert torch.equal(taken["next"], after.next_sample[:, None])
    assert torch.equal(taken["std"], after.std[:, None])
    assert [taken[name].unique().tolist() for name in ("s", "s_next")] == [[second], [third]]
    x = after.next_sample
    x = euler(x, third, end, generator.velocity(x, x.new_full((len(x),), third), condition))
    assert torch.equal(images, generator.decode(x, condition))


def test_the_mean_of_the_noise_leaves_out_the_last_step() -> None:
    """Of "flow": η·√(s/(1-s)), at s = 1 with the next level in the denominator."""
    steps = Toy().steps(4)  # 1, ¾, ½, ¼, 0
    expected = 0.7 * sum((s / (1 - t)) ** 0.5 for s, t in ((1, 0.75), (0.75, 0.75), (0.5, 0.5))) / 3
    assert abs(mean_std(steps, noise_level=0.7, kind="flow") - expected) < 1e-12
