"""One step of Flow-GRPO (Eq. 4, 5 and 6 of the paper's supplement) with the compiled operators.

    python examples/flow_grpo_step.py

Rollout: several results of each low-resolution image, by an SDE in a window of the steps and by the ODE elsewhere.
Update: the steps of the window are scored again under the present weights. The generator is a small stand-in on pixels.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import finpercep
from finpercep import ops
from finpercep.data.demo_photos import load_photo

STEPS = torch.linspace(1, 0, 9).tolist()  # noise levels of the sampler
WINDOW = range(2, 5)  # steps that are random, and trained; never the last one
GROUP = 6  # results of one low-resolution image
NOISE_LEVEL = 0.7
CLIP, BETA = 1e-3, 0.04


class Generator(nn.Module):
    """Velocity of x (B,3,H,W) at a noise level, given the low-resolution image (B,3,h,w)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(6, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 3, 3, padding=1))

    def forward(self, x: Tensor, sigma: float, low: Tensor) -> Tensor:
        enlarged = interpolate(low, x.shape[-2:], mode="bicubic")
        return (x - enlarged - 0.2 * self.net(torch.cat([x, enlarged], 1))) / sigma


class Transition(NamedTuple):
    """One random step of a rollout, and its log-probability (N,) when it was drawn."""

    sigma: float
    sigma_next: float
    sample: Tensor
    next_sample: Tensor
    log_prob: Tensor


@torch.no_grad()
def rollout(generator: nn.Module, low: Tensor) -> tuple[Tensor, list[Transition]]:
    """Results (N,3,H,W) in [0, 1] of low-resolution images (N,3,h,w), and the steps of the window."""
    x = torch.randn(len(low), 3, 4 * low.shape[-2], 4 * low.shape[-1])
    window = []
    for number, (sigma, sigma_next) in enumerate(pairwise(STEPS)):
        velocity = generator(x, sigma, low)
        if number in WINDOW:
            step = ops.sde_step(velocity, x, sigma, sigma_next, noise_level=NOISE_LEVEL, return_mean=False)
            window.append(Transition(sigma, sigma_next, x, step.next_sample, step.log_prob))
            x = step.next_sample
        else:
            x = x + (sigma_next - sigma) * velocity
    return x.clamp(0, 1), window


def loss_of(
    generator: nn.Module, frozen: nn.Module, low: Tensor, window: list[Transition], advantages: Tensor
) -> tuple[Tensor, ops.GRPOStats]:
    """Eq. 6 over the steps of the window, scored under the present weights."""
    log_probs, kls = [], []
    for step in window:
        with torch.no_grad():
            reference = frozen(step.sample, step.sigma, low)
        again = ops.sde_step(
            generator(step.sample, step.sigma, low),
            step.sample,
            step.sigma,
            step.sigma_next,
            noise_level=NOISE_LEVEL,
            next_sample=step.next_sample,
            reference_velocity=reference,
            return_mean=False,
        )
        assert again.kl is not None  # because of reference_velocity
        log_probs.append(again.log_prob)
        kls.append(again.kl)
    old = torch.stack([step.log_prob for step in window], 1)  # (N, T)
    return ops.grpo_loss(
        torch.stack(log_probs, 1), old, advantages, clip_low=CLIP, clip_high=CLIP, kl=torch.stack(kls, 1), beta=BETA
    )


def main(updates: int = 2) -> list[ops.GRPOStats]:
    torch.manual_seed(0)
    photo = load_photo("chelsea")
    photos = torch.stack([photo[:, 60:124, 120:184], photo[:, 100:164, 200:264]])
    low = interpolate(photos, scale_factor=0.25, mode="area").repeat_interleave(GROUP, 0)  # groups lie together
    generator = Generator()
    frozen = copy.deepcopy(generator).requires_grad_(False)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-4)
    reward = finpercep.RewardModel.from_pretrained("finpercep-tiny").requires_grad_(False)

    results, window = rollout(generator, low)
    with torch.no_grad():
        rewards = reward(results).score
    advantages, groups = ops.group_advantage(rewards, group_size=GROUP)
    print(f"{groups.groups} groups, {groups.zero_variance} of them dead; reward {rewards.mean():.4f}")

    history = []
    for update in range(updates):
        loss, stats = loss_of(generator, frozen, low, window, advantages)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(stats)
        print(
            f"update {update}: loss {loss.item():.6f}, ratio {stats.ratio_min:.6f} to {stats.ratio_max:.6f}, "
            f"KL {stats.kl_loss:.2e}"
        )
    return history


if __name__ == "__main__":
    main()
