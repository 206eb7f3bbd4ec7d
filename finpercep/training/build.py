"""The model that a run trains, as it begins, and what the optimizer is told of it."""

from __future__ import annotations

from typing import Any

from finpercep.models import CLIPIQA, RewardModel
from finpercep.models.inputs import STORED_PREPROCESSING
from finpercep.models.norms import freeze_norms
from finpercep.models.presets import PRESETS
from finpercep.training.checkpointing import checkpoint_layers
from finpercep.training.config import RewardTrainConfig


def new_model(config: RewardTrainConfig, base: RewardModel | CLIPIQA | None) -> RewardModel:
    """The model at the first step, in training; `base` is the loaded anchor.

    Raises:
        ValueError: anchor and init that do not fit each other, or checkpointing of another encoder than a transformer.
    """
    model = _model(config, base)
    if config.checkpointing:
        checkpoint_layers(model.encoder)
    model.train()
    if not all(parameter.requires_grad for parameter in model.encoder.parameters()):
        freeze_norms(model.encoder)  # adapters alone learn; batches must not move what is frozen
    return model


def _model(config: RewardTrainConfig, base: RewardModel | CLIPIQA | None) -> RewardModel:
    if config.init in PRESETS:
        return _around_clip(config)
    if config.init is not None:
        model = RewardModel.from_pretrained(config.init, fold=False)
        if config.anchor is not None and not model.has_map:
            raise ValueError(f"init: expected a model with a map, got {config.init}; as anchor alone it gets one")
        return model
    if config.anchor is None:
        return RewardModel(config.encoder, None, config.head, STORED_PREPROCESSING)
    if isinstance(base, CLIPIQA):
        raise ValueError(
            f"init: expected a model with a map, since none grows from a CLIP-IQA ({config.anchor}), got none"
        )
    return RewardModel.from_pretrained(config.anchor, fold=False).expand(config.decoder, config.head)


def _around_clip(config: RewardTrainConfig) -> RewardModel:
    """A preset, whose decoder and head are new and therefore as the settings say."""
    model = RewardModel.from_preset(str(config.init), decoder=config.decoder["width"])
    if "gate" in config.head:
        model.head.gate = config.head["gate"]
        model.config["head"]["gate"] = config.head["gate"]
    return model


def parameter_groups(model: RewardModel, config: RewardTrainConfig) -> list[dict[str, Any]]:
    """Two groups, encoder and new parts, each with its rate."""
    encoder = list(model.encoder.parameters())
    ids = {id(p) for p in encoder}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [{"params": encoder, "lr": config.lr_encoder}, {"params": rest, "lr": config.lr_new}]
