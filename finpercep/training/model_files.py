"""The model of a run on disk, as it is trained."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from finpercep.io.files import write_json
from finpercep.models import RewardModel
from finpercep.runs.state import sized_write


def write_model(model: RewardModel, folder: Path) -> None:
    """`config.json` and `model.safetensors`; a kill at any moment leaves the previous or the new one of each, whole.

    Raises:
        OSError: a full disk, no permission; names the file.
    """
    weights = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    with sized_write(folder / "model.safetensors", len(weights)) as file:
        file.write(weights)
        write_json(folder / "config.json", model.config)
