"""The settings of a training run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from finpercep.data.triplets import TripletConfig
from finpercep.training.climbing import ClimbConfig
from finpercep.training.losses import LossWeights

PRECISIONS = ("fp32", "bf16")
BEST = "best"
"""Folder in a run's own, with the best model by the held-out scenes."""
PAPER_MODEL = "finpercep-vit-l-14"


def paper_settings(init: str | None) -> dict[str, Any]:
    """Where the paper (supplement, section 5.1) differs from the defaults, which have its rates and its three weights.

    Args:
        init: what is trained; nothing but the paper's own model has settings of its own.
    """
    return {"batch": 64, "epochs": 50} if init == PAPER_MODEL else {}


def _option(default: Any, help: str, **more: Any) -> Any:
    """A field that `finpercep train-reward` has an option for."""
    return field(default=default, metadata={"help": help, **more})


@dataclass
class RewardTrainConfig:
    """One training run; written to `<out>/train.json`.

    Attributes:
        data: folders with an index.jsonl or made by `make_dataset`, see `load_scenes`; all scenes are drawn alike.
        out: the run's folder: the model, `train.json`, `state.pt` (to resume from).
        anchor: RM_0, the frozen S_base of L_align: what `load_base` takes; the encoder and the head start from it and a
            decoder is added. Nothing can grow from a CLIP-IQA, so that one needs `init`. None trains RM_0 itself (no
            map), or goes on with `init`; L_level takes the place of L_align.
        init: a model to go on from, in a new run with its own schedule: what `RewardModel.from_pretrained` takes; its
            architecture wins over `encoder`, `decoder` and `head`. Of a preset around CLIP, decoder and head are new:
            they have the width of `decoder` and the gate of `head`.
        lr_encoder, lr_new: peak rates of encoder and of everything else; cosine to 0 after a linear warm-up.
        leave_out: SR sources not to train on.
        more: "SOURCE=N": scenes with a result of this source come N more times, with that result alone; of four results
            that a scene has, =3 draws this one 13 times as often. They count in `epochs`.
        steps: updates.
        epochs: takes the place of `steps`: so many times as many triplets as there are pairs of photo and result, or
            stored samples.
        batch: triplets in a step, of all processes.
        precision: "fp32", or "bf16": autocast of a vision transformer and its decoder; others stay in float32.
        checkpointing: layers of a vision transformer are computed again in the backward pass: same result, less memory.
        ema: decay of the moving average of the weights, which then is what is measured and saved; 0 for none.
        dev_every: n > 0 keeps every n-th training scene out, to choose recipes on (`split_dev`).
        evaluate_every: n > 0 measures the model on scenes that `dev_every` keeps out, every n steps.
        evaluate_scenes: at most so many of these scenes.
        device: of the model; triplets are made on the CPU.
    """

    data: str | tuple[str, ...]
    out: str
    anchor: str | None = _option(
        None,
        "The RM_0 to anchor to: a folder with an RM_0 or a CLIP-IQA, or finpercep-vit-b-16 or finpercep-vit-l-14 for "
        "CLIP-IQA on that CLIP model (a CLIP-IQA also needs --init). Without this option, RM_0 itself, which has no "
        "map, is trained, or what --init names.",
    )
    init: str | None = _option(
        None,
        "Model to continue from, with a new schedule: a name, a folder or a Hugging Face Hub id. It keeps its decoder "
        "width and gate, except for the new ones of finpercep-vit-b-16 and finpercep-vit-l-14.",
    )
    steps: int = _option(3000, "Total number of updates.", min=1)
    epochs: int | None = _option(None, "Passes over all pairs of photo and result, in place of --steps.", min=1)
    batch: int = _option(8, "Triplets per step.", min=1)
    lr_encoder: float = _option(1e-5, "Peak learning rate of the encoder.", min=0)
    lr_new: float = _option(1e-4, "Peak learning rate of everything else.", min=0)
    weight_decay: float = field(default=1e-4, metadata={"min": 0})
    warmup: int = _option(100, "Steps over which the learning rates rise to their peaks.", min=0)
    precision: str = _option("fp32", "fp32, or bf16 for autocast: faster on a GPU, with a vision transformer.")
    checkpointing: bool = _option(
        False, "Compute the layers of a vision transformer again in the backward pass: less memory, more time."
    )
    ema: float = _option(0.0, "Decay of a moving average of the weights, which is then what is saved. 0: none.")
    seed: int = _option(0, "Seed for the weights and the triplets.")
    leave_out: list[str] = field(
        default_factory=list,
        metadata={"help": "SR source to leave out of training. May be given several times."},
    )
    more: list[str] = field(
        default_factory=list,
        metadata={
            "help": "SOURCE=N: photos with a result of this SR source come N more times, with that result alone, "
            "so that it is drawn more often. May be given several times."
        },
    )
    encoder: dict[str, Any] = field(default_factory=lambda: {"type": "conv", "norm": True})
    decoder: dict[str, Any] = field(default_factory=lambda: {"width": "light", "norm": True})
    head: dict[str, Any] = field(default_factory=dict)
    triplets: TripletConfig = field(default_factory=TripletConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    climb: ClimbConfig = field(default_factory=ClimbConfig)
    save_every: int = field(default=250, metadata={"min": 1})
    log_every: int = field(default=25, metadata={"min": 1})
    workers: int = _option(1, "Number of processes that prepare triplets.", min=0)
    dev_every: int = _option(0, "Hold out every N-th training scene (0: none), to choose settings on.", min=0)
    evaluate_every: int = _option(
        0,
        "Steps between evaluations on the scenes that --dev-every holds out (0: none); the best model is kept.",
        min=0,
    )
    evaluate_scenes: int = _option(24, "Number of held-out scenes in an evaluation, at most.", min=1)
    device: str = "cpu"

    def __post_init__(self) -> None:
        for option in fields(self):
            value, least = getattr(self, option.name), option.metadata.get("min")
            if value is not None and least is not None and not value >= least:  # NaN too
                raise ValueError(f"{option.name}: expected at least {least}, got {value}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected {' or '.join(PRECISIONS)}, got {self.precision!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a decay from 0 to below 1, got {self.ema}")

    @property
    def folders(self) -> tuple[str, ...]:
        """`data`, as folders."""
        return (self.data,) if isinstance(self.data, str) else tuple(self.data)


def comparable(config: RewardTrainConfig) -> dict[str, Any]:
    """The settings that must agree for a resume to be exact, in plain types.

    Folders may have moved; of what is in them, the run stores fingerprints.
    """
    ignored = {"out", "data", "anchor", "init", "workers", "log_every", "save_every", "device", "evaluate_every"}
    ignored.add("checkpointing")  # the same result
    return json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in ignored}))


def with_younger(was: dict[str, Any]) -> dict[str, Any]:
    """The settings of a state, completed: those that are younger than it had their defaults.

    What an encoder, a decoder or a head is made with stays as it is: what is missing there is not a default of ours.
    """
    config = RewardTrainConfig(data="", out="")
    defaults = comparable(config)
    groups = [name for name in was if is_dataclass(getattr(config, name, None))]
    return defaults | was | {name: defaults[name] | was[name] for name in groups}


def check_folders(config: RewardTrainConfig) -> None:
    """Refuse to overwrite a model that the run starts from.

    Raises:
        ValueError: `out`, or `best` in it, is the folder of `anchor` or `init`.
    """
    out = Path(config.out).resolve()
    for name, path in (("anchor", config.anchor), ("init", config.init)):
        if path is not None and Path(path).resolve() in (out, out / BEST):
            raise ValueError(f"out: expected another folder than that of {name}, got {config.out} for both")
