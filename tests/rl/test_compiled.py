"""A run whose networks are compiled: what it compiles, what it learns, and that it resumes to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finpercep.models import RewardOutput
from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.generators import SRTiny
from finpercep.rl.loop import train
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.refl import ReFLConfig
from finpercep.rl.trainer import RLTrainer
from tests.rl.conftest import Kill

pytestmark = pytest.mark.compile


class Network(nn.Module):
    """So few layers that they are quickly compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(96, 8, 3, padding=1), nn.Conv2d(8, 48, 3, padding=1)

    def forward(self, inputs, level):
        return self.last(F.silu(self.first(inputs)) * (1 + level[:, None, None, None]))


class Plain(SRTiny):
    """The embedded generator with that network."""

    def __init__(self) -> None:
        super().__init__((8, 16), 1)
        draw = torch.Generator().manual_seed(1)
        self.network = Network()
        for parameter in self.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)


class Small(nn.Module):
    """A reward with a map, and a layer."""

    fingerprint = "small"

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, stride=2)
        nn.init.constant_(self.layer.weight, 0.05)

    def forward(self, images):
        found = torch.sigmoid(self.layer(images))
        return RewardOutput(found.flatten(1).mean(1), F.interpolate(found[:, :1], images.shape[2:]))


@pytest.fixture
def config(photo_set, tmp_path):
    return RLConfig(
        data=(str(photo_set),),
        out=str(tmp_path / "run"),
        generator="tests.rl.test_compiled:Plain",
        algorithm=ReFLConfig(steps=2, late=1, micro_batch=1),
        stages=(StageConfig("tests.rl.test_compiled:Small", steps=4, lr=1e-3),),
        monitors=MonitorConfig(judge=""),
        batch=2,
        side=32,
        save_every=2,
        eval_every=4,
        eval_photos=2,
        eval_steps=2,
        compile=True,
    )


def test_what_is_compiled(config):
    trainer = RLTrainer(config)
    (reference,) = trainer.generator._reference
    reward = trainer.moment.reward
    for module in (trainer.generator.network, reference.network, reward):
        assert module._compiled_call_impl is not None
    assert reward.reward._compiled_call_impl is None  # a part of what is compiled around it
    eager = RLTrainer(replace(config, compile=False))
    torch.testing.assert_close(trainer.measurement.before, eager.measurement.before, atol=1 / 255 + 1e-6, rtol=0)
    assert (trainer.measurement.before != eager.measurement.before).float().mean() < 0.001  # a rounded pixel at most


def test_resumed_run_is_the_run_that_was_never_stopped(config, tmp_path):
    """Killed after step 3, saved at 2, and started as a new process would: nothing is compiled yet."""
    whole = train(config)
    broken = replace(config, out=str(tmp_path / "broken"))
    with pytest.raises(KeyError, match="killed"):
        train(broken, [Kill()])
    torch.compiler.reset()
    resumed = train(broken)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "broken" / "metrics.jsonl").read_text()
    eager = train(replace(config, out=str(tmp_path / "eager"), compile=False))
    for key, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, eager.state_dict()[key], atol=1e-4, rtol=1e-2, msg=key)


def test_it_must_stay_as_it_was(config):
    RLTrainer(replace(config, compile=False)).save()
    with pytest.raises(ValueError, match="compile"):
        RLTrainer(config).resume()
