"""The embedded generator: coordinates, reference, files, and pre-training that resumes exactly."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import clean, mix
from finpercep.rl.generators import SRTiny
from finpercep.rl.generators.pretrain import PretrainConfig, pretrain
from finpercep.rl.generators.tiny import SPREAD, UNIT
from finpercep.rl.rollout import results, sample_generators


@pytest.fixture
def given():
    draw = torch.Generator().manual_seed(0)
    photo = torch.rand(2, 3, 24, 40, generator=draw)
    return Batch(F.avg_pool2d(photo, 4), torch.tensor([3, 3]), photo)


def test_coordinates(given):
    """x0 is the difference to the bicubic image, and a new network guesses v linearly from x."""
    model = SRTiny((16, 24), 1)
    condition = model.condition(given)
    bicubic = F.interpolate(given.lr, scale_factor=4, mode="bicubic").clamp(0, 1)
    torch.testing.assert_close(condition.image, bicubic)
    x0 = model.encode(given.photo, condition)
    assert x0.shape == (2, 48, 6, 10)
    torch.testing.assert_close(x0[0, 1, 0, 0], UNIT * (given.photo - bicubic)[0, 0, 0, 1])
    torch.testing.assert_close(model.decode(x0, condition), given.photo)
    epsilon, s = torch.randn_like(x0), torch.tensor([1.0, 0.25])
    x = mix(x0, epsilon, s)
    v = model.velocity(x, s, condition)
    torch.testing.assert_close(v[0], epsilon[0])  # nothing is known of x0: it is guessed to be 0
    guess = 0.75 * SPREAD**2 / (0.75**2 * SPREAD**2 + 0.25**2) * x[1:]
    torch.testing.assert_close(clean(x[1:], 0.25, v[1:]), guess)


def test_any_size():
    model = SRTiny((16, 24), 1)
    lr = Batch(torch.rand(1, 3, 7, 5), torch.tensor([0]))
    assert results(model, lr, 2).shape == (1, 3, 28, 20)


def test_noise_belongs_to_image_and_sample(given):
    """Two samples of an image differ; none depends on what else is in the batch."""
    model = SRTiny((16, 24), 1)
    both = results(model, Batch(given.lr[:1].repeat(2, 1, 1, 1), given.ids), 3, "x")
    alone = results(model, given[:1], 3, "x")
    torch.testing.assert_close(both[:1], alone)
    assert (both[0] - both[1]).abs().max() > 0.01
    first, second = (torch.randn(1, generator=g) for g in sample_generators(given.ids, "x"))
    assert first != second


def test_steps():
    s = SRTiny.steps(SRTiny((16, 24), 1), 4).s
    assert s == pytest.approx((1.0, 1 / 11, 1 / 31, 1 / 91, 0.0))


def test_reference(given):
    model = SRTiny((16, 24), 1)
    condition, x, s = model.condition(given), torch.randn(2, 48, 6, 10), torch.tensor([0.5, 0.5])
    with pytest.raises(RuntimeError, match="call keep_reference"):
        model.reference_velocity(x, s, condition)
    model.keep_reference()
    before = model.velocity(x, s, condition)
    with torch.no_grad():
        model.network.leave.bias += 1
    torch.testing.assert_close(model.reference_velocity(x, s, condition), before)
    assert (model.velocity(x, s, condition) - before).abs().max() > 0.1
    assert not any("reference" in name for name in model.state_dict())


def test_files(tmp_path):
    model = SRTiny((16, 24), 1)
    torch.nn.init.normal_(model.network.leave.weight)
    model.save_pretrained(tmp_path)
    again = SRTiny.from_pretrained(tmp_path)
    assert again.fingerprint == model.fingerprint
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"blocks": 2}))
    with pytest.raises(ValueError, match=r"model.safetensors: does not fit config.json"):
        SRTiny.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="finpercep-sr-small: no such model or folder"):
        SRTiny.from_pretrained("finpercep-sr-small")


def test_pretraining_lowers_its_loss_and_resumes_exactly(photo_set, tmp_path):
    losses = []
    options = {"data": (str(photo_set),), "batch": 2, "side": 32, "steps": 12, "lr": 1e-2, "warmup": 2}
    whole = pretrain(PretrainConfig(out=str(tmp_path / "a"), **options), lambda step, loss: losses.append(loss))
    assert sum(losses[-4:]) < sum(losses[:4])

    def stop(step, loss):
        if step == 7:
            raise KeyboardInterrupt

    config = PretrainConfig(out=str(tmp_path / "b"), save_every=5, **options)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, stop)
    steps = []
    resumed = pretrain(config, lambda step, loss: steps.append(step))
    assert steps == list(range(6, 13))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_embedded_weights():
    """Small, known by name, and close to the bicubic image."""
    model = SRTiny.from_pretrained()
    assert model.fingerprint == "6355c4271e56e8a3"
    assert sum(p.numel() for p in model.parameters()) == 1_055_424
    ramp = torch.linspace(0.2, 0.8, 16).expand(1, 3, 16, 16)
    given = Batch(ramp, torch.tensor([0]))
    image = results(model, given, 3, "ramp")
    bicubic = model.condition(given).image
    assert 0 < (image - bicubic).abs().mean() < 0.02
