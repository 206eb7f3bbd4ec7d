"""Gaussian and Poisson noise of a batch, each sample with its own strength, kind and seed, without a loop over it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from finpercep.data.degradations.compiled import compiled
from finpercep.data.degradations.ragged import Ragged
from finpercep.data.degradations.random_bits import hash_bits, normal_table, normals

GREY = (0.2989, 0.587, 0.114)  # torchvision's, which BasicSR uses
OUTCOMES = 512  # of a Poisson variable of mean <= 256: the rest has probability 1e-38


def add_noise(images: Ragged, gaussian: Tensor, strength: Tensor, grey: Tensor, key: Tensor) -> Ragged:
    """Gaussian or else Poisson noise of each sample, clamped to [0, 1].

    Args:
        gaussian, grey: bool (B,), on the CPU.
        strength: (B,), `sigma` or `scale` of the functions below.
        key: int32 (B,2).
    """
    kernel, device = compiled("degrade_noise", images.pixels), images.pixels.device
    if kernel is not None:
        pixels, sizes = images.pixels.contiguous(), (images.height, images.width)
        made = kernel(pixels, *sizes, gaussian, strength.double(), grey, key, *noise_tables("cpu"))
        return images._replace(pixels=made)
    out = images.pixels.clone()
    for kind, noise in ((True, gaussian_noise), (False, poisson_noise)):
        index = torch.nonzero(gaussian == kind).flatten()
        if len(index):
            at = index.to(device)
            some = Ragged(images.pixels[at], images.height[index], images.width[index])
            out[at] += noise(some, strength[index].to(device), grey[index].to(device), key[index].to(device))
    return images._replace(pixels=out.clamp_(0, 1))


def noise_tables(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernels look noise up in: normal quantiles, and the two tables of Poisson variables."""
    return (normal_table(device), *_alias_tables(device))


def gaussian_noise(images: Ragged, sigma: Tensor, grey: Tensor, key: Tensor) -> Tensor:
    """White noise (B,3,Hc,Wc), to be added to images in [0, 1].

    Args:
        sigma: standard deviation (B,), in 8-bit levels.
        grey: bool (B,): the same noise in all channels.
        key: int32 (B,2), see `random_bits.keys`.
    """
    noise = normals(hash_bits(_counters(images, grey), key))
    return noise * (sigma.view(-1, 1, 1, 1) / 255).to(noise)


def poisson_noise(images: Ragged, scale: Tensor, grey: Tensor, key: Tensor) -> Tensor:
    """Shot noise (B,3,Hc,Wc): scale · (Poisson(v·x) / v - x), x the image in 8 bits.

    v is the number of distinct levels of a sample, rounded up to a power of two, as in BasicSR. Grey noise is that of
    the grey image, in all channels. Sampled exactly, by Walker's alias method.

    Args:
        scale: (B,).
        grey, key: as in `gaussian_noise`.
    """
    pixels = images.pixels.clamp(0, 1)
    weights = pixels.new_tensor(GREY).view(1, 3, 1, 1)
    grey_image = (pixels * weights).sum(1, True).expand_as(pixels)
    levels = (torch.where(grey.view(-1, 1, 1, 1), grey_image, pixels) * 255).round().clamp(0, 255).long()
    present = torch.zeros(len(levels), 256, device=pixels.device)
    present.scatter_(1, levels.flatten(1), 1.0)
    exponent = present.sum(1).log2().ceil().long().clamp(0, 8)  # v = 2^exponent
    bits = hash_bits(_counters(images, grey), key)
    column = (bits >> 23).bitwise_and_(OUTCOMES - 1).long()
    fraction = (bits & 0x7FFFFF).float() / 2**23
    entry = ((exponent.view(-1, 1, 1, 1) * 256 + levels) * OUTCOMES + column).flatten()
    chance, alias = _alias_tables(str(pixels.device))
    kept = fraction.flatten() < chance.index_select(0, entry)
    count = torch.where(kept, column.flatten(), alias.index_select(0, entry).long()).view(levels.shape)
    vals = torch.exp2(exponent.float()).view(-1, 1, 1, 1)
    return (count / vals - levels.float() / 255) * scale.view(-1, 1, 1, 1).to(pixels)


def _counters(images: Ragged, grey: Tensor) -> Tensor:
    """Each value's place in its own sample, int32 (B,3,Hc,Wc); beyond a sample, that of its nearest pixel."""
    _, channels, height, width = images.pixels.shape
    device = images.pixels.device
    rows = torch.minimum(torch.arange(height)[None], images.height[:, None] - 1) * images.width[:, None]
    columns = torch.minimum(torch.arange(width)[None], images.width[:, None] - 1)
    channel = torch.arange(channels)[None] * (~grey.cpu())[:, None]
    parts = (
        channel[:, :, None, None].int().to(device),
        (channels * rows)[:, None, :, None].int().to(device),
        (channels * columns)[:, None, None].int().to(device),
    )
    return parts[0] + parts[1] + parts[2]


@lru_cache(maxsize=8)
def _alias_tables(device: str) -> tuple[Tensor, Tensor]:
    """Walker's alias tables of Poisson(2^e · level/255) for e = 0…8 and all 256 levels: (9·256·OUTCOMES,) each.

    Outcome: draw a column; keep it with probability `chance`, else take `alias`.
    """
    k = torch.arange(OUTCOMES, dtype=torch.float64)
    mean = torch.exp2(torch.arange(9.0).double())[:, None] * torch.arange(256).double() / 255
    mean = mean.reshape(-1, 1)
    log_mass = k * mean.log() - mean - torch.lgamma(k + 1)
    mass = torch.where(mean > 0, log_mass.exp(), (k == 0).double())
    left = mass / mass.sum(1, True) * OUTCOMES  # what each column still has to give away, on average 1
    chance, alias = torch.ones_like(left), k.long().repeat(len(left), 1)
    # Columns from the poorest up are filled from the richest, which never falls below what others need.
    order = left.argsort(1)
    rich = left.gather(1, order)
    low, high = torch.zeros(len(left), dtype=torch.long), torch.full((len(left),), OUTCOMES - 1)
    every = torch.arange(len(left))
    spare = rich[every, high].clone()
    pending, share = rich[every, low].clone(), order[every, low].clone()
    for _ in range(OUTCOMES - 1):
        donor = order[every, high]
        chance[every, share] = pending
        alias[every, share] = donor
        spare = spare - (1 - pending)
        # A donor below 1 becomes the next column to fill, and the next richest donates.
        empty = spare < 1
        low = torch.where(empty, low, low + 1)
        next_low = rich[every, low.clamp_max(OUTCOMES - 1)]
        pending = torch.where(empty, spare, next_low)
        share = torch.where(empty, donor, order[every, low.clamp_max(OUTCOMES - 1)])
        high = torch.where(empty, high - 1, high)
        spare = torch.where(empty, rich[every, high.clamp_min(0)], spare)
    chance[every, share] = 1.0
    return chance.float().flatten().to(device), alias.to(torch.int32).flatten().to(device)
