"""Random numbers that are a function of (seed, stream, counter): batched, parallel, the same on every device.

A generator per sample would have to be called sample by sample. Here every number is a hash of its place, so a whole
batch is drawn at once and a sample's noise does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def keys(seeds: Sequence[int], stream: int, device: torch.device | str = "cpu") -> Tensor:
    """Two 32-bit keys per seed, int32 (B,2); streams of one seed have nothing in common (SplitMix64, Steele 2014)."""
    z = torch.tensor([seed % 2**63 for seed in seeds], dtype=torch.int64)
    z = z + _signed((stream + 1) * 0x9E3779B97F4A7C15 % 2**64, 64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ _shifted(z, shift, 64)) * _signed(factor, 64)
    z = z ^ _shifted(z, 31, 64)
    return torch.stack([_low_word(z), _low_word(z >> 32)], 1).to(device)


def hash_bits(counter: Tensor, key: Tensor) -> Tensor:
    """32 random bits for each counter.

    Two rounds of xor, shift and multiplication (constants: Wellons' lowbias32), with a key before and between them.

    Args:
        counter: int32 (B,…); overwritten.
        key: int32 (B,2).

    Returns: int32 (B,…).
    """
    shape = (-1,) + (1,) * (counter.ndim - 1)
    x = counter.bitwise_xor_(key[:, 0].view(shape))
    x ^= _shifted(x, 16, 32)
    x *= 0x7FEB352D
    x ^= _shifted(x, 15, 32)
    x += key[:, 1].view(shape)
    x *= _signed(0x846CA68B, 32)
    x ^= _shifted(x, 16, 32)
    return x


def uniforms(seeds: Sequence[int], count: int, stream: int = 0) -> Tensor:
    """(B,count) numbers uniform in [0, 1), fp64."""
    counter = torch.arange(count, dtype=torch.int32).repeat(len(seeds), 1)
    return _shifted(hash_bits(counter, keys(seeds, stream)), 8, 32).double() / 2**24


def normals(bits: Tensor) -> Tensor:
    """Standard normal values, fp32, of the upper 16 of 32 random bits: quantiles at 65 536 equal steps.

    Unit variance exactly; no value beyond 4.3, where one in 65 000 would lie.
    """
    table = normal_table(str(bits.device))
    return table.index_select(0, _shifted(bits, 16, 32).flatten()).view(bits.shape)


@lru_cache(maxsize=8)
def normal_table(device: str) -> Tensor:
    """The quantiles (65536,), fp32."""
    steps = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    quantiles = torch.special.ndtri(steps)
    return (quantiles / quantiles.square().mean().sqrt()).float().to(device)


def _shifted(x: Tensor, by: int, width: int) -> Tensor:
    """Logical right shift."""
    return (x >> by) & (2 ** (width - by) - 1)


def _signed(value: int, width: int) -> int:
    return value - 2**width if value >= 2 ** (width - 1) else value


def _low_word(z: Tensor) -> Tensor:
    low = z & 0xFFFFFFFF
    return torch.where(low >= 2**31, low - 2**32, low).to(torch.int32)
