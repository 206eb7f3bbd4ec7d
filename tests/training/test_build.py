import dataclasses

import pytest
import torch

from finpercep.models import RewardModel
from finpercep.models.presets import PRESETS
from finpercep.training.build import new_model
from finpercep.training.checkpointing import checkpoint_layers
from finpercep.training.config import RewardTrainConfig, paper_settings
from finpercep.training.losses import LossWeights
from tests.models.conftest import write_clip


@pytest.fixture
def around_clip(tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    clip = write_clip(tmp_path / "clip", layers=24, patch=14)
    monkeypatch.setitem(PRESETS, "finpercep-vit-l-14", PRESETS["finpercep-vit-l-14"]._replace(clip=str(clip)))
    return RewardTrainConfig(data="", out=str(tmp_path / "run"), init="finpercep-vit-l-14")


@pytest.mark.filterwarnings("ignore:.*untrained")
def test_new_parts_of_a_preset_are_as_the_settings_say(around_clip):
    literal = dataclasses.replace(around_clip, head={"gate": "degradation"}, decoder={"width": "full", "norm": True})
    model = new_model(literal, None)
    assert model.training
    assert model.config["decoder"] == {"width": "full"}
    assert model.head.gate == model.config["head"]["gate"] == "degradation"
    with torch.no_grad():  # literal Eq. 7: what is clean all over is one point
        nothing = torch.zeros(2, 1, 28, 28)
        pooled = model.head.pool(torch.rand(2, 32, 2, 2), nothing)
    assert torch.equal(pooled, torch.zeros(2, 32))
    model.save_pretrained(literal.out)
    assert RewardModel.from_pretrained(literal.out).head.gate == "degradation"
    assert new_model(around_clip, None).head.gate == "residual"


@pytest.mark.filterwarnings("ignore:.*untrained")
def test_checkpointing_is_for_transformers(around_clip):
    model = new_model(dataclasses.replace(around_clip, checkpointing=True), None)
    assert {type(layer).__name__ for layer in model.encoder.layers} == {"Checkpointed"}
    checkpoint_layers(model.encoder)  # twice is once more than needed, and does no harm
    small = RewardTrainConfig(data="", out="", checkpointing=True)
    with pytest.raises(ValueError, match=r"^checkpointing: expected a vision transformer"):
        new_model(small, None)


def test_the_papers_settings():
    assert paper_settings("finpercep-vit-l-14") == {"batch": 64, "epochs": 50}
    assert paper_settings("finpercep-vit-b-16") == paper_settings(None) == {}
    config = RewardTrainConfig(data="", out="")
    assert (config.lr_encoder, config.lr_new, config.weight_decay) == (1e-5, 1e-4, 1e-4)
    weights = LossWeights()
    assert (weights.map, weights.rank, weights.align) == (1.0, 0.8, 0.6)


def test_normalizations_of_a_frozen_encoder_stay_as_they_are(tmp_path):
    """Adapters learn, and batches move no statistics of what is frozen; those of the decoder are learned."""
    start = RewardModel({"type": "conv", "norm": True}, {"width": 8, "norm": True}, {})
    grown = start.expand({"width": 16}, adapter_rank=2)
    grown.save_pretrained(tmp_path / "grown")
    model = new_model(RewardTrainConfig(data="", out=str(tmp_path / "run"), init=str(tmp_path / "grown")), None)
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    model(torch.rand(2, 3, 64, 64))
    moved = {name for name, value in before.items() if not torch.equal(model.state_dict()[name], value)}
    assert any(name.startswith("encoder.") for name in before)
    assert moved
    assert all(name.startswith("decoder.") for name in moved)
