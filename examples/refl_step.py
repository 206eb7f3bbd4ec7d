"""Reward feedback learning (ReFL, Eq. 1 and 2 of the paper's supplement): a few whole steps on a small generator.

    python examples/refl_step.py

The generator is a stand-in: a flow-matching network on pixels, x = (1-σ)·x_0 + σ·ε with velocity v = ε - x_0, that sees
the low-resolution image. Put your own in its place; a latent one needs its decoder before the reward.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss, relu

import finpercep
from finpercep.data.demo_photos import load_photo

STEPS = torch.linspace(1, 0, 11)  # noise levels of the sampler
LATE = (6, 9)  # steps at which the image is already recognizable
REWARD_WEIGHT = 0.02


class Generator(nn.Module):
    """Velocity of x (B,3,H,W) at noise levels (B,), given the low-resolution image (B,3,h,w)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(7, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 3, 1)
        )

    def forward(self, x: Tensor, sigma: Tensor, low: Tensor) -> Tensor:
        enlarged = interpolate(low, x.shape[-2:], mode="bicubic")
        level = sigma.view(-1, 1, 1, 1)
        clean = enlarged + 0.2 * self.net(torch.cat([x, enlarged, level.expand(-1, 1, *x.shape[-2:])], 1))
        return (x - clean) / level


def refl_step(
    generator: nn.Module, reward: nn.Module, optimizer: torch.optim.Optimizer, photos: Tensor
) -> dict[str, float]:
    """One update on photos (B,3,H,W) in [0, 1]; returns the terms of Eq. 2 and the reward."""
    size = len(photos)
    low = interpolate(photos, scale_factor=0.25, mode="area")

    # Down to a random late step without gradients, then one prediction of the clean image with them (Eq. 1).
    x, stop = torch.randn_like(photos), int(torch.randint(*LATE, ()))
    with torch.no_grad():
        for sigma, following in pairwise(STEPS[: stop + 1]):
            x = x + (following - sigma) * generator(x, sigma.expand(size), low)
    sigma = STEPS[stop]
    predicted = (x - sigma * generator(x, sigma.expand(size), low)).clamp(0, 1)
    out = reward(predicted)
    gain = 0.5 * out.score + 0.5 * (1 - finpercep.worst_mean(out.map))
    feedback = relu(1 - gain).mean()  # φ of Eq. 2

    # The pre-training term: without it the generator forgets what photos look like.
    level, noise = 0.05 + 0.95 * torch.rand(size), torch.randn_like(photos)
    blend = level.view(-1, 1, 1, 1)
    velocity = generator((1 - blend) * photos + blend * noise, level, low)
    pretraining = mse_loss(blend * velocity, blend * (noise - photos))  # weighted: the error of the clean image

    loss = pretraining + REWARD_WEIGHT * feedback
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"reward": gain.mean().item(), "feedback": feedback.item(), "pretraining": pretraining.item()}


def main(steps: int = 6) -> list[dict[str, float]]:
    torch.manual_seed(0)
    photo = load_photo("astronaut")
    photos = torch.stack([photo[:, 20:116, 150:246], photo[:, 300:396, 100:196]])
    generator = Generator()
    reward = finpercep.RewardModel.from_pretrained("finpercep-tiny").requires_grad_(False)
    optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3)
    history = []
    for step in range(steps):
        history.append(refl_step(generator, reward, optimizer, photos))
        print(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in history[-1].items()))
    return history


if __name__ == "__main__":
    main()
