"""Latents of low-resolution images that are always used whole: computed once, and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from finpercep.io.fingerprints import weights_fingerprint
from finpercep.rl.batch import LATENT
from finpercep.rl.cache import TensorCache
from finpercep.rl.generators import GeneratorModule
from finpercep.rl.generators.flow import ControlNetGenerator
from finpercep.rl.pair import Pair


@torch.no_grad()
def keep_latents(pairs: Sequence[Pair], generator: GeneratorModule, side: int, *, degraded: float) -> int:
    """Give latents to the pairs that need none of the VAE afterwards: whole images that `degrade` does not change.

    Only for generators that are told latents, where their options name a cache, and where all pairs are of that kind: a
    batch has the latents of all its images, or of none.

    Args:
        pairs: they are changed.
        generator: whose VAE it is.
        side: of the crops, pixels; a pair of that size is used whole.
        degraded: share of photos that are degraded on the fly.

    Returns:
        How many pairs have latents now that had none.
    """
    if not isinstance(generator, ControlNetGenerator) or generator.options.cache is None:
        return 0
    cache = TensorCache(Path(generator.options.cache) / "latents")
    vae = weights_fingerprint([generator.scale], generator.vae.state_dict())
    device = next(generator.vae.parameters()).device
    able = [
        pair for pair in pairs if not pair.fixed and pair.sides == (side, side) and not (pair.has_photo and degraded)
    ]
    if len(able) + sum(pair.fixed for pair in pairs) < len(pairs):
        return 0
    for pair in able:
        key = {"vae": vae, "lr": hashlib.sha256(pair.lr.contiguous().numpy().tobytes()).hexdigest()}
        if cache.get(key) is None:
            cache.put(key, {LATENT: generator.latents_of(pair.lr[None].to(device).float() / 255)[0]})
        pair.extras = {**pair.extras, LATENT: partial(_read, cache, key)}
    return len(able)


def _read(cache: TensorCache, key: dict[str, str]) -> Tensor:
    found = cache.get(key)
    if found is None:
        raise ValueError(f"{cache.path(key)}: expected latents that were there before, found none")
    return found[LATENT]
