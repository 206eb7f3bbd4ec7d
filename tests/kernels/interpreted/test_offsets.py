"""Tensors of more than 2³¹ elements: the last program of each large kernel reads and writes at the right place.

Their memory is only reserved: apart from the last few pages nobody touches it.
"""

from __future__ import annotations

import torch

from finpercep.kernels import advantage, degradation_target, grpo, modulate, sde
from finpercep.ops import degradation_target_reference, modulate_reference
from finpercep.ops.advantage import group_advantage_reference
from finpercep.ops.grpo import grpo_loss_reference
from finpercep.ops.sde import sde_step_reference
from tests.huge import HUGE, reserve

from ..launches import Launch, record


def run_last(launches: list[Launch], name: str) -> Launch:
    (launch,) = [one for one in launches if one.name == name]
    launch.run_program(launch.grid[0] - 1)
    return launch


def test_modulate() -> None:
    channels, images = 1023, HUGE // 1023 + 2
    features = reserve(images, 1, channels)
    degradation = torch.full((images, 1, 1, 1), 0.5)
    run = record(modulate.modulate, features, degradation, 1, 1, 0, 0, False)
    out = run_last(run, "modulate_fwd_kernel").arguments["out"]
    expected = modulate_reference(features[-1:], degradation[-1:], (1, 1))
    assert torch.equal(out[-1:], expected)
    d = torch.full((images, 1), 0.25)
    run = record(modulate.modulate_backward, features, features, degradation, d, 1, 1, 0, 0, False, True, True)
    arguments = run_last(run, "modulate_bwd_kernel").arguments
    assert torch.equal(arguments["grad_features"][-1], features[-1] * 0.25)
    torch.testing.assert_close(arguments["grad_d"][-1, 0], features[-1].float().square().sum())


def test_degradation_target() -> None:
    side = 26800
    images = [reserve(1, 3, side, side, dtype=torch.uint8, tail=n) for n in (3000, 2000)]
    for image in images:
        image[0, :2, -1, -3000:] = 7
    run = record(degradation_target.degradation_target, *images, None, None, 0.5, 3, 0.01, 0.9, 0.25)
    out = run_last(run, "target_raw_kernel").arguments["out"]
    last = [image[:, :, -1:, -100:] for image in images]
    torch.testing.assert_close(
        out[:, :, -1:, -100:], degradation_target_reference(*last, normalize="scale", scale=0.25)
    )


def test_cosine_distance() -> None:
    features = [reserve(1, 33, HUGE // 33 + 33, 1) for _ in range(2)]
    pixels = features[0].shape[2]
    for feature in features:
        feature[0, :, -10:] = torch.randn(33, 10, 1).to(torch.bfloat16)
    run = record(degradation_target._cosine, *features, torch.float32)
    moments = run_last(run, "target_cosine_kernel").arguments["moments"]
    f, g = (t[0, :, -10:, 0].float() for t in features)
    expected = torch.stack([(f * g).sum(0), (f * f).sum(0), (g * g).sum(0)])
    torch.testing.assert_close(moments[0, :, pixels - 10 :, 0], expected)


def test_grpo_loss() -> None:
    samples, steps = HUGE // 4096 + 1, 4096
    log_prob, old = reserve(samples, steps), reserve(samples, steps, tail=4999)
    advantages = torch.linspace(-1, 2, samples)
    run = record(grpo.grpo_loss, log_prob, old, advantages, None, 0.2, 0.2, 0.0)
    partial = run_last(run, "grpo_fwd_kernel").arguments["partial"]
    _, stats = grpo_loss_reference(log_prob[-1:], old[-1:], advantages[-1:], clip_low=0.2, clip_high=0.2)
    torch.testing.assert_close(partial[-1, 0].float() / steps, stats.policy_loss)
    torch.testing.assert_close(partial[-1, 2].float() / steps, stats.ratio_mean)
    run = record(grpo.grpo_loss_backward, torch.tensor(1.0), log_prob, old, advantages, 0.2, 0.2)
    grad = run_last(run, "grpo_bwd_kernel").arguments["grad_log_prob"]
    leaf = log_prob[-1:].float().requires_grad_()
    loss, _ = grpo_loss_reference(leaf, old[-1:], advantages[-1:], clip_low=0.2, clip_high=0.2)
    expected = torch.autograd.grad(loss, leaf)[0] / samples
    torch.testing.assert_close(grad[-1, -1024:].float(), expected[0, -1024:], rtol=1e-2, atol=1e-12)


def test_group_advantage() -> None:
    rewards = reserve(HUGE + 16)
    run = record(advantage.group_advantage, rewards, None, 16, 1e-4, 0, 0, 0.0, 1e-6)
    advantages = run_last(run, "advantage_rows_kernel").arguments["advantages"]
    expected, _ = group_advantage_reference(rewards[-16:], group_size=16)
    torch.testing.assert_close(advantages[-16:], expected)


def test_sde_step() -> None:
    v, x, noise = (reserve(1, HUGE + 4096, tail=n) for n in (4096, 4097, 4098))
    sigma = torch.tensor([0.6], dtype=torch.float64)
    run = record(sde.sde_step, v, x, sigma, sigma - 0.1, noise, None, None, 0, True, 0.7, -1.0, True)
    arguments = run_last(run, "sde_fwd_kernel").arguments
    end = slice(-4096, None)
    expected = sde_step_reference(v[:, end], x[:, end], sigma, sigma - 0.1, noise=noise[:, end])
    torch.testing.assert_close(arguments["drawn"][:, end], expected.next_sample)
    torch.testing.assert_close(arguments["mean_out"][:, end], expected.mean)
    run = record(sde.sde_step_backward, x, None, None, None, v, x, x, sigma, sigma - 0.1, None, 0, True, 0.7, -1.0)
    grad = run_last(run, "sde_bwd_kernel").arguments["grad_velocity"]
    leaf = v[:, end].clone().requires_grad_()
    drawn = sde_step_reference(leaf, x[:, end], sigma, sigma - 0.1, noise=noise[:, end]).next_sample
    torch.testing.assert_close(grad[:, end], torch.autograd.grad(drawn, leaf, x[:, end])[0])
