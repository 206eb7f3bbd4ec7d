"""Pre-training of the embedded generator: flow matching on photos and low-resolution versions of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finpercep.data.randomness import seeded
from finpercep.rl.generators.flow_matching import flow_matching_loss
from finpercep.rl.generators.tiny import SRTiny
from finpercep.rl.photos import Crops, load_pairs
from finpercep.runs.lock import folder_lock
from finpercep.runs.schedule import cosine
from finpercep.runs.state import check_settings, read_state, write_state

STATE_PARTS = ("step", "model", "averaged", "optimizer", "settings")


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training.

    Attributes:
        data: folders with index.jsonl, see `load_pairs`.
        init: model to go on from, in a new run with its own schedule; None begins anew.
        out: the run's folder: the averaged weights as a model, and the state to resume from.
        steps: updates in all.
        batch: crops in each.
        side: of the crops of photos, pixels.
        degraded: share of crops degraded on the fly; the others keep their set's own low-resolution version.
        lr: learning rate, which rises over `warmup` steps and falls to 0 along a cosine.
        warmup: steps.
        weight_decay: of AdamW.
        average: share that an update leaves of the averaged weights.
        save_every: steps between states.
        seed: of weights, crops, noise and its levels.
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


def pretrain(config: PretrainConfig, report: Callable[[int, float], None] = lambda step, loss: None) -> SRTiny:
    """Train a new generator to the end, resuming what is in `config.out`.

    Args:
        config: the run.
        report: told the loss after each step (counted from 1).

    Returns:
        The generator with averaged weights, as it is saved in `config.out`.

    Raises:
        ValueError: a state of other settings, or data that do not fit; see `load_pairs`.
        OSError: data that are missing, another run in the folder, or no room in it.
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
            draws = [seeded(config.seed, "flow", step, row) for row in range(config.batch)]
            loss = flow_matching_loss(model, crops.batch(step, config.batch), draws)
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
