"""The files of a training run; a kill at any moment leaves the previous or the new one of each, whole."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from finpercep.io.files import atomic_write, write_json
from finpercep.models import RewardModel
from finpercep.models.checkpoint import share_weights

STATE = "state.pt"
_ADVICE = "; delete it to begin anew, or go on from the saved model with --init in another folder"
_PARTS = {"step", "model", "optimizer", "schedule", "settings"}


def write_model(model: RewardModel, folder: Path) -> None:
    """`config.json` and `model.safetensors`, each replaced at once."""
    part = folder / "model.safetensors.part"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, str(part))
    write_json(folder / "config.json", model.config)
    os.replace(part, part.with_suffix(""))
    share_weights(folder)


def write_state(state: dict[str, Any], folder: Path) -> None:
    """`state.pt`: step, model, optimizer, schedule and settings."""
    with atomic_write(folder / STATE) as file:
        torch.save(state, file)


def read_state(folder: Path) -> dict[str, Any] | None:
    """What `write_state` wrote, on the CPU; None where there is none.

    Raises:
        ValueError: truncated, or another file; names it.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        # An optimizer moves what belongs on a GPU there by itself; AdamW's step counters stay on the CPU.
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = sorted(_PARTS - (state.keys() if isinstance(state, dict) else set()))
        if missing:
            raise ValueError(f"one without {', '.join(missing)}")
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: expected the state of a run, got a file that could run code{_ADVICE}") from error
    except Exception as error:  # the zip reader raises many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: expected the state of a run, got {reason[:200]}{_ADVICE}") from error
    return state
