"""Sampling: noise from a seed per image and sample, and the deterministic sampler."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise

import torch
from torch import Tensor

from finpercep.data.randomness import seed_of
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import euler, placed
from finpercep.rl.generators import Generator, GeneratorModule


def sample_generators(ids: Tensor, *names: object) -> list[torch.Generator]:
    """A CPU generator for every row, of `row_seeds`: a sample's noise does not depend on the batch it is in."""
    return [torch.Generator().manual_seed(seed) for seed in row_seeds(ids, *names)]


def row_seeds(ids: Tensor, *names: object) -> list[int]:
    """A seed for every row: a function of its image, of how many rows of that image came before, and `names`."""
    seen: Counter[int] = Counter()
    seeds = []
    for image in ids.tolist():
        seeds.append(seed_of(0, *names, image, seen[image]))
        seen[image] += 1
    return seeds


def initial_noise(generator: Generator, batch: Batch, draws: list[torch.Generator], first: float = 1.0) -> Tensor:
    """x at the sampler's first level, (B,channels,h,w), each row from its own torch generator.

    Below s = 1 it is z of unit variance in flow coordinates, as samplers of variance-preserving models begin.
    """
    height, width = (side * generator.scale // generator.stride for side in batch.lr.shape[-2:])
    shape = (generator.channels, height, width)
    noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
    return placed(noise * math.hypot(first, 1 - first), batch.lr)


def portions(rows: int, at_once: int) -> Iterator[slice]:
    """Slices of at most `at_once` of the rows, or of all of them if it is 0."""
    size = at_once or max(rows, 1)
    return (slice(start, start + size) for start in range(0, rows, size))


@torch.no_grad()
def sample_images(
    generator: Generator, batch: Batch, count: int, draws: list[torch.Generator], at_once: int
) -> tuple[Tensor, Tensor]:
    """Latents (B,C,h,w) and images (B,3,H,W) of `sample`, no more than `at_once` rows in a forward pass (0: all)."""
    latents, images = [], []
    for rows in portions(len(batch), at_once):
        part = batch[rows]
        latents.append(sample(generator, part, count, draws[rows]))
        images.append(generator.decode(latents[-1], generator.condition(part)))
    return torch.cat(latents), torch.cat(images)


@torch.no_grad()
def sample(
    generator: Generator, batch: Batch, count: int, draws: list[torch.Generator], *, stop: int | None = None
) -> Tensor:
    """x after `stop` (default: all) of `count` Euler steps from noise, without gradient.

    Raises:
        ValueError: a velocity of another shape than x.
    """
    steps, condition = generator.steps(count), generator.condition(batch)
    x = initial_noise(generator, batch, draws, steps.s[0])
    for s, s_next in islice(pairwise(steps.s), stop):
        v = generator.velocity(x, torch.full((len(x),), s, device=x.device, dtype=x.dtype), condition)
        if v.shape != x.shape:
            raise ValueError(
                f"generator: expected a velocity {tuple(x.shape)}, by its channels and stride, got {tuple(v.shape)}"
            )
        x = euler(x, s, s_next, v)
    return x


@torch.no_grad()
def results(generator: Generator, batch: Batch, count: int, *names: object) -> Tensor:
    """Images (B,3,H,W) of a batch by `count` Euler steps; `names` are what the noise is a function of."""
    x = sample(generator, batch, count, sample_generators(batch.ids, *names))
    return generator.decode(x, generator.condition(batch))


def enlarge(generator: GeneratorModule, images: Tensor, *, steps: int = 3, seed: int = 0) -> Tensor:
    """Use a generator: what it makes of low-resolution images.

    Args:
        generator: as `load_generator` or a run gives it.
        images: (B,3,h,w), float in [0, 1].
        steps: of the sampler.
        seed: of the noise, with an image's place in the batch.

    Returns:
        (B,3,H,W), float in [0, 1], `generator.scale` times as large, where the generator is.

    Raises:
        TypeError: integers, or no tensor.
        ValueError: no step, or no image.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a tensor (B,3,h,w), got {type(images).__name__}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if not len(images):
        raise ValueError("images: expected at least one, got none")
    if not images.is_floating_point():
        raise TypeError(f"images: expected float in [0, 1], got {images.dtype}")
    place = next(generator.parameters())
    batch = generator.prepare(Batch(images.float(), torch.arange(len(images))).to(place.device))
    return results(generator, batch, steps, "enlarge", seed).clamp(0, 1)
