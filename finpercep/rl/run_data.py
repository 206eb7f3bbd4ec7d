"""The photos of a run: what is trained on, and what is held out."""

from __future__ import annotations

from typing import NamedTuple

from finpercep.rl.config import RLConfig, check_held, check_photos
from finpercep.rl.generators import GeneratorModule
from finpercep.rl.held_out import HeldOut
from finpercep.rl.latents import keep_latents
from finpercep.rl.pairs_fingerprint import pairs_fingerprint
from finpercep.rl.photos import Crops, split_pairs


class RunData(NamedTuple):
    """Of a run.

    Attributes:
        crops: the batches of its steps.
        held_out: what is measured on.
        kept: how many images have latents that are kept on disk.
        fingerprint: of all files.
    """

    crops: Crops
    held_out: HeldOut
    kept: int
    fingerprint: str


def run_data(config: RLConfig, generator: GeneratorModule) -> RunData:
    """Read what the settings name, but for what the run itself has written.

    Raises:
        FileNotFoundError, ValueError: see `load_pairs`, `split_pairs`, `check_photos` and `Crops`.
    """
    fit, held = split_pairs(
        config.data,
        generator.scale,
        dev_every=config.dev_every,
        held=config.eval_photos,
        labelled=config.given_pairs,
        degradation=config.degradation,
    )
    check_held(config, len(held))
    check_photos(config.algorithm, any(pair.has_photo for pair in fit))
    kept = keep_latents(fit, generator, config.side, degraded=config.degraded)
    scale, prompt = generator.scale, config.generator_options.prompt
    crops = Crops(
        fit,
        config.side,
        scale=scale,
        degraded=config.degraded,
        degradation=config.degradation,
        seed=config.seed,
        prompt=prompt,
    )
    held_out = HeldOut(held, config.side, scale, config.eval_steps, prompt=prompt)
    return RunData(crops, held_out, kept, pairs_fingerprint([*fit, *held]))
