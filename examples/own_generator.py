"""A generator of your own, fine-tuned against the reward by ReFL (Eq. 1 and 2 of the paper's supplement).

    python examples/own_generator.py

The generator is one class with four methods, and `encode` for the term on photos. It is any model of x = (1-s)·x0 + s·ε
that gives v = ε - x0: here a stand-in that predicts x0, pixels. `load_generator("own_generator:Sharpener")` finds it by
name where this file can be imported, and `RLConfig(generator="own_generator:Sharpener")` trains it with the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from finpercep.data.demo_photos import load_photo
from finpercep.rewards import load_reward
from finpercep.rl import Batch, GeneratorModule, ReFL, ReFLConfig, Steps


class Sharpener(GeneratorModule):
    """×4: x0 is the bicubic image, and what a small network adds to it."""

    scale, channels, stride = 4, 3, 1  # x has the size of the results, with 3 channels

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(7, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 3, 3, padding=1))

    def condition(self, batch: Batch) -> Tensor:
        return interpolate(batch.lr, scale_factor=self.scale, mode="bicubic").clamp(0, 1)

    def velocity(self, x: Tensor, s: Tensor, condition: Tensor) -> Tensor:
        level = s.view(-1, 1, 1, 1).clamp(min=0.1)  # next to 0 the division would blow up what is wrong with x0
        told = level.expand(-1, 1, *x.shape[2:])
        x0 = condition + 0.1 * self.network(torch.cat([x, condition, told], 1))
        return (x - x0) / level  # because x = x0 + s·v; of other predictions, `rl.coordinates.velocity` makes v

    def decode(self, x0: Tensor, condition: Tensor) -> Tensor:
        return x0.clamp(0, 1)

    def encode(self, photo: Tensor, condition: Tensor) -> Tensor:
        return photo

    def steps(self, count: int) -> Steps:
        s = tuple(1 - i / count for i in range(count + 1))
        return Steps(s, s[:-1])


def main(updates: int = 12) -> list[float]:
    torch.manual_seed(0)
    photo = load_photo("chelsea")
    photos = torch.stack([photo[:, 60:156, 120:216], photo[:, 100:196, 200:296]])
    batch = Batch(interpolate(photos, scale_factor=0.25, mode="area"), torch.arange(len(photos)), photos)
    generator, reward = Sharpener(), load_reward("finpercep-tiny")
    algorithm = ReFL(generator, ReFLConfig(steps=4, late=1, weighting="identity"))
    optimizer = torch.optim.AdamW(generator.trainable_parameters(), lr=2e-3)

    history = []
    for step in range(updates):
        experience = algorithm.collect(batch, reward, step)  # sampled without gradient to a late step
        terms = algorithm.loss(experience)  # and from there through the reward, with the term on photos
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        history.append(float(terms["reward_avg"]))
        print(f"step {step}: reward {history[-1]:.4f}, term on photos {terms['pretrain_loss'].item():.3f}")
    return history


if __name__ == "__main__":
    main()
