"""Pre-training of the embedded generator: flow matching on photos and low-resolution versions of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finpercep.data.randomness import seeded
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import mix, placed
from finpercep.rl.generators.protocol import Generator
from finpercep.rl.generators.tiny import SRTiny
from finpercep.rl.photos import Crops, load_pairs
from finpercep.runs.lock import folder_lock
from finpercep.runs.schedule import cosine
from finpercep.runs.state import check_settings, read_state, write_state

STATE_PARTS = ("step", "model", "averaged", "optimizer", "settings")
LEVELS = 64
"""Steps between which `draw_level` interpolates."""


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training.

    Attributes:
        data: folders with index.jsonl, see `load_pairs`.
        init: model to go on from, in a new run with its own schedule; None begins anew.
        out: the run's folder: the averaged weights as a model, and the state to resume from.
        side: of the crops of photos, pixels.
        degraded: share of crops degraded on the fly; the others keep their set's own low-resolution version.
        average: share that an update leaves of the averaged weights.
    """

    data: tuple[str, ...]
    out: str
    init: str | None = None
    steps: int = 4000
    batch: int = 8
    side: int = 96
    degraded: float = 0.5
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 1e-4
    average: float = 0.995
    save_every: int = 100
    seed: int = 0


def flow_matching_loss(generator: Generator, batch: Batch, seeds: Sequence[torch.Generator]) -> Tensor:
    """E|v_θ(x, s) - (ε - x0)|² on photos: the second term of Eq. 2 in flow coordinates, and pre-training.

    s is distributed as the sampler's steps are: what is used is what is trained.

    Args:
        batch: with photos; rows without one count as 0 in the mean.
        seeds: of s and ε, on the CPU, one for each row: no row depends on its batch.

    Raises:
        ValueError: a batch without photos.
    """
    if batch.photo is None:
        raise ValueError("batch: expected photos for the pre-training term, got low-resolution images alone")
    condition = generator.condition(batch)
    with torch.no_grad():
        x0 = generator.encode(batch.photo, condition)
        levels = torch.cat([draw_level(generator, seed) for seed in seeds])
        noise = torch.stack([torch.randn(x0.shape[1:], generator=seed, dtype=torch.float64) for seed in seeds])
        s, epsilon = placed(levels, x0), placed(noise, x0)
    error = (generator.velocity(mix(x0, epsilon, s), s, condition) - (epsilon - x0)).square()
    return error.mean() if batch.has_photo is None else (error.flatten(1).mean(1) * batch.has_photo).mean()


def draw_level(generator: Generator, seed: torch.Generator) -> Tensor:
    """A noise level (1,) fp64, distributed as those of the generator's sampler."""
    s = torch.tensor(generator.steps(LEVELS).s, dtype=torch.float64)
    at = LEVELS * torch.rand(1, generator=seed, dtype=torch.float64)
    below = at.long()
    return torch.lerp(s[below], s[below + 1], at - below)


def pretrain(config: PretrainConfig, report: Callable[[int, float], None] = lambda step, loss: None) -> SRTiny:
    """Train a new generator to the end, resuming what is in `config.out`.

    Args:
        report: told the loss after each step (counted from 1).

    Returns:
        The generator with averaged weights, as it is saved in `config.out`.
    """
    torch.manual_seed(config.seed)
    model = SRTiny() if config.init is None else SRTiny.from_pretrained(config.init).train()
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    crops = Crops(
        load_pairs(config.data, "train", SRTiny.scale), config.side, degraded=config.degraded, seed=config.seed
    )
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "save_every")}
    folder, done = Path(config.out), 0
    with folder_lock(folder):
        state = read_state(folder, STATE_PARTS)
        if state is not None:
            check_settings(state["settings"], settings, folder)
            model.load_state_dict(state["model"])
            averaged.load_state_dict(state["averaged"])
            optimizer.load_state_dict(state["optimizer"])
            done = state["step"]
        for step in range(done, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * cosine(step, config.warmup, config.steps)
            seeds = [seeded(config.seed, "flow", step, row) for row in range(config.batch)]
            loss = flow_matching_loss(model, crops.batch(step, config.batch), seeds)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            averaged.update_parameters(model)
            report(step + 1, loss.item())
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                _save(folder, step + 1, model, averaged, optimizer, settings)
    return _averaged(averaged)


def _save(
    folder: Path,
    step: int,
    model: SRTiny,
    averaged: torch.optim.swa_utils.AveragedModel,
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
) -> None:
    _averaged(averaged).save_pretrained(folder)
    write_state(
        {
            "step": step,
            "model": model.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizer": optimizer.state_dict(),
            "settings": settings,
        },
        folder,
    )


def _averaged(model: torch.optim.swa_utils.AveragedModel) -> SRTiny:
    inside = model.module
    assert isinstance(inside, SRTiny)
    return inside.eval()
