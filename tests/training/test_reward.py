import dataclasses
import json

import pytest
import torch

from finpercep.data.triplets import Triplet, TripletConfig
from finpercep.models import RewardModel
from finpercep.training.losses import LossWeights, raise_odds
from finpercep.training.reward import RewardTrainConfig, RewardTrainer, cosine, parameter_groups, train
from tests.data.conftest import write_scenes

ENCODER = {"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True}


@pytest.fixture
def config(tmp_path):
    write_scenes(tmp_path / "data", 3)
    return RewardTrainConfig(
        data=str(tmp_path / "data"),
        out=str(tmp_path / "rm0"),
        steps=4,
        batch=2,
        lr_encoder=1e-3,
        lr_new=1e-3,
        warmup=1,
        encoder=ENCODER,
        decoder={"width": 8, "norm": True},
        triplets=TripletConfig(crop=32),
        save_every=2,
        workers=0,
    )


def full(config):
    return dataclasses.replace(config, anchor=config.out, out=config.out + "-full")


def test_base_then_full_model(config, tmp_path):
    base = train(config)
    assert base.decoder is None
    assert base.score(torch.rand(3, 32, 32)).map.abs().max() == 0
    model = train(full(config))
    loaded = RewardModel.from_pretrained(config.out + "-full")
    assert loaded.fingerprint == model.fingerprint != base.fingerprint
    assert json.loads((tmp_path / "rm0-full" / "train.json").read_text())["steps"] == 4
    assert list((tmp_path / "rm0-full").glob("events*"))  # TensorBoard


def test_full_model_starts_from_its_anchor(config):
    train(config)
    trainer = RewardTrainer(full(config))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trainer.model.eval()(images).score, trainer.base(images).score)
    anchor = RewardModel.from_pretrained(config.out, fold=False).state_dict()
    state = trainer.model.state_dict()
    encoder = [name for name in anchor if name.startswith("encoder.")]
    assert all(torch.equal(state[name], anchor[name]) for name in encoder)
    assert any(name.startswith("decoder.") for name in state)
    assert not any(p.requires_grad for p in trainer.base.parameters())


def test_resume_is_exact(config, tmp_path):
    train(config)
    straight = RewardTrainer(full(config))
    for batch in straight.batches():
        straight.step(batch)
    stopped = RewardTrainer(full(config))
    batches = stopped.batches()
    for _ in range(2):
        stopped.step(next(batches))
    stopped.save()
    resumed = RewardTrainer(full(config))
    assert resumed.resume()
    for batch in resumed.batches():
        resumed.step(batch)
    assert resumed.done == 4
    assert resumed.model.fingerprint == straight.model.fingerprint != stopped.model.fingerprint


def test_resume_refuses_other_settings(config):
    train(config)
    with pytest.raises(ValueError, match=r"state\.pt: made with batch=2 \(now 3\)"):
        train(dataclasses.replace(config, batch=3))


def test_map_losses_weigh_restored_images_and_raise_the_odds(config):
    train(config)
    trainer = RewardTrainer(dataclasses.replace(full(config), loss=LossWeights(restored=0.5, fault_odds=3.0)))
    trainer.model.eval()
    batch = Triplet(*next(iter(trainer.batches())))
    maps = raise_odds(trainer.model(torch.cat(batch[:3])).map, 3.0).chunk(3)
    gt, syn, sr = (
        (m - target).abs().mean()
        for m, target in zip(maps, (0.0, batch.target_syn, batch.target_sr), strict=True)
    )
    torch.testing.assert_close(trainer.losses(batch)["map"], (gt + syn + 0.5 * sr) / 3)


def test_anchor_and_init_must_be_of_the_right_kind(config):
    train(config)
    train(full(config))
    rm0, rm1 = config.out, config.out + "-full"
    with pytest.raises(ValueError, match=r"^anchor: expected RM_0, a model without a map, got .*rm0-full$"):
        RewardTrainer(dataclasses.replace(config, anchor=rm1))
    with pytest.raises(ValueError, match=r"^anchor: expected the RM_0 that .*rm0-full grew from, got none$"):
        RewardTrainer(dataclasses.replace(config, init=rm1))
    with pytest.raises(ValueError, match=r"^init: expected a model with a map, got .*rm0; as anchor alone"):
        RewardTrainer(dataclasses.replace(config, anchor=rm0, init=rm0))
    assert RewardTrainer(dataclasses.replace(config, init=rm0)).model.decoder is None  # RM_0 goes on


def test_training_lowers_the_loss(config):
    trainer = RewardTrainer(dataclasses.replace(config, steps=30, batch=4))
    losses = [trainer.step(batch)["rank"] for batch in trainer.batches()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_loss_that_is_not_finite_stops_the_run(config):
    trainer = RewardTrainer(config)
    before = [p.clone() for p in trainer.model.parameters()]
    batch = next(iter(trainer.batches()))
    with pytest.raises(FloatingPointError, match="loss at step 0 is nan"):
        trainer.step(batch._replace(gt=batch.gt * float("nan")))
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_parameter_groups_are_the_papers(config):
    defaults = RewardTrainConfig(data="", out="")
    groups = parameter_groups(RewardModel(ENCODER, {"width": 8}), defaults)
    model_size = sum(p.numel() for p in RewardModel(ENCODER, {"width": 8}).parameters())
    assert [g["lr"] for g in groups] == [1e-5, 1e-4]
    assert sum(p.numel() for g in groups for p in g["params"]) == model_size
    optimizer = RewardTrainer(config).optimizer
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["weight_decay"] == 1e-4


def test_cosine():
    assert cosine(0, 10, 100) == pytest.approx(0.1)
    assert cosine(10, 10, 100) == 1
    assert cosine(55, 10, 100) == pytest.approx(0.5)
    assert cosine(100, 10, 100) == pytest.approx(0, abs=1e-12)
