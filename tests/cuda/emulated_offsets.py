"""Tensors of more than 2³¹ elements: the last block of each large kernel reads and writes at the right place. Run by
test_emulated.py, with the emulator in the place of finpercep._C.

Their memory is only reserved: apart from the last few pages nobody touches it. What the blocks that do not run would
have written is undefined, so only results of the last one are looked at. The blocks of group_advantage stride over the
whole tensor, which would take too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from finpercep import ops
from finpercep.ops import degradation_target_reference, modulate_reference
from finpercep.ops.grpo import grpo_loss_reference
from finpercep.ops.sde import sde_step_reference
from tests.huge import HUGE, reserve

operators = torch.ops.finpercep


@pytest.fixture
def only_last_blocks(cpp: str) -> Iterator[Callable[[int], None]]:
    """Call it with the number of launches to run the last block of: what comes after them merges what is undefined."""
    from finpercep import _C

    yield _C.only_last_blocks
    _C.only_last_blocks(-1)


def test_modulate(only_last_blocks) -> None:
    channels, images = 1023, HUGE // 1023 + 2
    features = reserve(images, 1, channels)
    degradation = torch.full((images, 1, 1, 1), 0.5)
    only_last_blocks(1)
    out, _ = operators.modulate(features, degradation, 1, 1, 0, 0, False)
    assert torch.equal(out[-1:], modulate_reference(features[-1:], degradation[-1:], (1, 1)))
    d = torch.full((images, 1), 0.25)
    only_last_blocks(2)
    grad_features, grad_map = operators.modulate_backward(
        features, features, degradation, d, 1, 1, 0, 0, False, True, True
    )
    assert torch.equal(grad_features[-1], features[-1] * 0.25)
    torch.testing.assert_close(grad_map[-1, 0, 0, 0], features[-1].float().square().sum())


def test_degradation_target(only_last_blocks) -> None:
    side = 26800
    images = [reserve(1, 3, side, side, dtype=torch.uint8, tail=n) for n in (3000, 2000)]
    for image in images:
        image[0, :2, -1, -3000:] = 7
    only_last_blocks(1)
    out = ops.degradation_target(*images, normalize="scale", scale=0.25, backend="cpp")
    last = [image[:, :, -1:, -100:] for image in images]
    expected = degradation_target_reference(*last, normalize="scale", scale=0.25)
    torch.testing.assert_close(out[:, :, -1:, -100:], expected)


def test_grpo_loss(only_last_blocks) -> None:
    samples, steps = HUGE // 4096 + 1, 4096
    log_prob, old = reserve(samples, steps), reserve(samples, steps, tail=4999)
    advantages = torch.linspace(-1, 2, samples)
    only_last_blocks(1)
    grad = operators.grpo_loss_backward(torch.tensor(1.0), log_prob, old, advantages, 0.2, 0.2)
    leaf = log_prob[-1:].float().requires_grad_()
    loss, _ = grpo_loss_reference(leaf, old[-1:], advantages[-1:], clip_low=0.2, clip_high=0.2)
    expected = torch.autograd.grad(loss, leaf)[0] / samples
    assert expected.any()
    torch.testing.assert_close(grad[-1, -1024:].float(), expected[0, -1024:], rtol=1e-2, atol=1e-12)


def test_sde_step(only_last_blocks) -> None:
    v, x, noise = (reserve(1, HUGE + 4096, tail=n) for n in (4096, 4097, 4098))
    sigma = torch.tensor([0.6], dtype=torch.float64)
    end = slice(-1024, None)
    only_last_blocks(1)
    step = ops.sde_step(v, x, sigma, sigma - 0.1, noise=noise, backend="cpp")
    expected = sde_step_reference(v[:, end], x[:, end], sigma, sigma - 0.1, noise=noise[:, end])
    torch.testing.assert_close(step.next_sample[:, end], expected.next_sample)
    torch.testing.assert_close(step.mean[:, end], expected.mean)
    only_last_blocks(1)
    grad = operators.sde_step_backward(x, None, None, None, v, x, x, sigma, sigma - 0.1, None, 0, True, 0.7, -1.0)
    leaf = v[:, end].clone().requires_grad_()
    drawn = sde_step_reference(leaf, x[:, end], sigma, sigma - 0.1, noise=noise[:, end]).next_sample
    torch.testing.assert_close(grad[:, end], torch.autograd.grad(drawn, leaf, x[:, end])[0])
