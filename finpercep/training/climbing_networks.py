"""Small networks that learn to raise the score, as a generator would, where climbers move each image by itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.data.randomness import choose, integer
from finpercep.models import RewardModel, worst_mean
from finpercep.models.evaluation_view import evaluation_view
from finpercep.models.inputs import as_stored
from finpercep.runs.devices import uploaded
from finpercep.runs.ranks import Ranks
from finpercep.training.climbers import Climbed
from finpercep.training.climbing import ClimbConfig, draw_levels, score_logit, share_of_batch

__all__ = ["ClimbingNetwork", "ClimbingNetworks"]

POOL = 4
PERIODS = (1, 2, 4)
AMPLITUDES = (1.5, 12.0)
"""Least and most that a network may change a pixel, in levels of 255."""
WIDTH = 24
RATE = 5e-3
LIFE = 60
"""Steps that a network learns for, on average; one of the pool learns in a training step."""


class ClimbingNetwork(nn.Module):
    """x + a·tanh(f(x)), clamped to [0, 1]: (B,3,H,W) -> the same; f repeats with a period and is 0 at first.

    Args:
        period: pixels: f is a network of three convolutions on `pixel_unshuffle` of x, as generators are that work at
            low resolution.
        amplitude: a.
        draw: random numbers for the weights.
    """

    def __init__(self, period: int, amplitude: float, draw: torch.Generator) -> None:
        super().__init__()
        self.period, self.amplitude = period, amplitude
        channels = 3 * period**2
        first, second, last = (
            nn.Conv2d(*sizes, 3, padding=1) for sizes in ((channels, WIDTH), (WIDTH, WIDTH), (WIDTH, channels))
        )
        for layer in (first, second):
            nn.init.kaiming_uniform_(layer.weight, a=1, generator=draw)
        nn.init.zeros_(last.weight)
        for layer in (first, second, last):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        whole = F.pad(2 * x - 1, (0, -width % self.period, 0, -height % self.period), mode="replicate")
        found = F.pixel_shuffle(self.layers(F.pixel_unshuffle(whole, self.period)), self.period)
        return (x + self.amplitude * found[..., :height, :width].tanh()).clamp(0, 1)


class ClimbingNetworks:
    """A pool of networks that learn, step by step, to raise what a loop climbs: the score, and 1 - max̂ of the map.

    What they make of photos, implanted photos and whole results is an image like any other: its M_gt is that against
    the photo, which credits what has become truer and nothing else. Where photo and result are not aligned
    (`Scene.aligned`), that would count the shift as a fault: there it is the faults of before and what is new.

    Args:
        config: what share of images they change.
        batch: triplets in a step, of all processes.
        ranks: the processes: all have the same networks, which learn from the images of all.
        device: of the networks.
    """

    def __init__(self, config: ClimbConfig, batch: int, ranks: Ranks, device: torch.device) -> None:
        self.count = share_of_batch("climb_networks", config.climb_networks, batch)
        self.batch, self.ranks, self.device = batch, ranks, device
        self.part = ranks.rows(batch)
        self.pool: list[tuple[ClimbingNetwork, torch.optim.Adam]] = []

    def climb(
        self,
        model: RewardModel,
        images: Tensor,
        target: Tensor,
        weight: Tensor,
        aligned: Tensor,
        draw: torch.Generator,
    ) -> Climbed:
        """Let one network learn from `count` images, and give what it makes of them then.

        Args:
            model: whose score and map it raises.
            images: (3N,3,H,W): this process's photos, implanted photos and whole results.
            target, weight: their M_gt (3N,1,H,W) and its weights (3N,1,1,1).
            aligned: (N,), bool: whether a photo and what came of it lie on the same pixels.
            draw: the step's random numbers, the same in all processes.
        """
        if not self.count:
            return Climbed.nothing(images, target, weight)
        self.pool = self.pool or [self._new(draw) for _ in range(POOL)]
        place = integer(0, POOL - 1, draw)
        if integer(1, LIFE, draw) == 1:
            self.pool[place] = self._new(draw)
        triplets = torch.randperm(self.batch, generator=draw)[: self.count]
        # Whole results twice as often: a generator's are such.
        kinds = torch.tensor([choose((0, 1, 2, 2), draw) for _ in range(self.count)], dtype=torch.long)
        mine = ((triplets >= self.part.start) & (triplets < self.part.stop)).nonzero().flatten()
        size, own = len(images) // 3, triplets[mine] - self.part.start
        rows, photo = uploaded(own + size * kinds[mine], images.device), uploaded(own, images.device)
        network, optimizer = self.pool[place]
        after = images[rows]
        self._learn(network, optimizer, evaluation_view(model), after)
        if len(rows):  # torch does not unshuffle an empty batch
            with torch.no_grad():
                after = as_stored(network(after))
        same = aligned[photo].view(-1, 1, 1, 1)
        before = torch.where(same, images[photo], images[rows])
        there = torch.where(same, 0.0, target[rows])
        return Climbed(uploaded(mine, images.device), before, after, there, weight[2 * size + photo])

    def _learn(self, network: ClimbingNetwork, optimizer: torch.optim.Adam, judge: RewardModel, images: Tensor) -> None:
        """A step of Adam, as long however steep the score is, by the mean over the images of all processes."""
        parameters = list(network.parameters())
        gradients = tuple(map(torch.zeros_like, parameters))
        if len(images):
            with torch.enable_grad():
                output = judge(network(images))
                reward = output.score
                if output.map is not None:
                    reward = (reward + 1 - worst_mean(output.map)) / 2
                loss = -score_logit(reward).sum() / self.count
                gradients = torch.autograd.grad(loss, parameters)
        self.ranks.add(list(gradients))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    def _new(self, draw: torch.Generator) -> tuple[ClimbingNetwork, torch.optim.Adam]:
        return self._made(ClimbingNetwork(choose(PERIODS, draw), draw_levels(AMPLITUDES, draw), draw))

    def _made(self, network: ClimbingNetwork) -> tuple[ClimbingNetwork, torch.optim.Adam]:
        network.to(self.device)
        return network, torch.optim.Adam(network.parameters(), RATE)

    def state(self) -> list[dict[str, Any]]:
        """The whole pool, to be saved; nothing before the first step."""
        return [
            {
                "period": network.period,
                "amplitude": network.amplitude,
                "weights": network.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            for network, optimizer in self.pool
        ]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Go on with a pool that `state` gave."""
        self.pool = []
        for kept in state:
            made = self._made(ClimbingNetwork(kept["period"], kept["amplitude"], torch.Generator()))
            made[0].load_state_dict(kept["weights"])
            made[1].load_state_dict(kept["optimizer"])
            self.pool.append(made)
