"""The settings of a training run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finpercep.data.triplets import TripletConfig
from finpercep.training.losses import LossWeights


@dataclass
class RewardTrainConfig:
    """One training run; written to `<out>/train.json`.

    Attributes:
        data: folder with index.jsonl, see `load_scenes`.
        out: the run's folder: the model, `train.json`, `state.pt` (for resuming), TensorBoard events.
        anchor: RM_0, the frozen S_base of L_align: what `load_base` takes. None trains RM_0 itself (no map; ranks and
            levels). Else the encoder and the head start from it and a decoder is added; nothing can grow from a
            CLIP-IQA, so that one needs `init`.
        init: a model to go on from, in a new run with its own schedule: what `RewardModel.from_pretrained` takes; its
            architecture wins over `encoder`, `decoder` and `head`.
        lr_encoder, lr_new: peak rates of encoder and of everything else; cosine to 0 after a linear warm-up.
        leave_out: SR sources not to train on.
        batch: triplets in a step.
        dev_every: n > 0 keeps every n-th training scene out, to choose recipes on (`split_dev`).
        device: of the model; triplets are made on the CPU.
    """

    data: str
    out: str
    anchor: str | None = None
    init: str | None = None
    steps: int = 3000
    batch: int = 8
    lr_encoder: float = 1e-5
    lr_new: float = 1e-4
    weight_decay: float = 1e-4
    warmup: int = 100
    seed: int = 0
    leave_out: list[str] = field(default_factory=list)
    encoder: dict[str, Any] = field(default_factory=lambda: {"type": "conv", "norm": True})
    decoder: dict[str, Any] = field(default_factory=lambda: {"width": "light", "norm": True})
    head: dict[str, Any] = field(default_factory=dict)
    triplets: TripletConfig = field(default_factory=TripletConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    save_every: int = 250
    log_every: int = 25
    workers: int = 1
    dev_every: int = 0
    device: str = "cpu"


def comparable(config: RewardTrainConfig) -> dict[str, Any]:
    """The settings that must agree for a resume to be exact, in plain types.

    Folders may have moved; of what is in them, the run stores fingerprints.
    """
    ignored = ("out", "data", "anchor", "init", "workers", "log_every", "save_every", "device")
    return json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in ignored}))


def check_folders(config: RewardTrainConfig) -> None:
    """Refuse to overwrite a model that the run starts from.

    Raises:
        ValueError: `out` is the folder of `anchor` or `init`.
    """
    for name, path in (("anchor", config.anchor), ("init", config.init)):
        if path is not None and Path(path).resolve() == Path(config.out).resolve():
            raise ValueError(f"out: expected another folder than that of {name}, got {config.out} for both")
