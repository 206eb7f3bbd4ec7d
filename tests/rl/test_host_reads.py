"""Rollout and loss never wait for the device; what they want to know is looked at once, after a step's updates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from finpercep.ops import _sde_arguments
from finpercep.rl.dpo import DPO, DPOConfig
from finpercep.rl.grpo import GRPO, GRPOConfig
from finpercep.rl.nft import NFT, NFTConfig
from finpercep.rl.refl import ReFL, ReFLConfig
from finpercep.rl.rollout import initial_noise, sample, sample_generators
from finpercep.rl.sde_rollout import sde_rollout
from tests.rl.toy import Green, Toy, batch

ALGORITHMS = {
    "refl": (ReFL, ReFLConfig(late=1, last=2, map_weight=0.5)),
    "dpo": (DPO, DPOConfig(group_size=3)),
    "grpo": (GRPO, GRPOConfig(group_size=3, beta=0.1, norm_weight=0.1, photo_weight=0.1, micro_batch=4)),
    "grpo, by position": (GRPO, GRPOConfig(group_size=3, map_weight=1.0, std_weight=True)),
    "grpo, dppo": (GRPO, GRPOConfig(group_size=3, limit="dppo")),
    "nft": (NFT, NFTConfig(group_size=3, reference_weight=0.1)),
}
READS = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero, torch.nonzero, torch.is_nonzero}
READS |= {
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.unique,
    torch.equal,
    torch.allclose,
}


class Reads(TorchFunctionMode):
    """Counts where values are read on the host, but for whole numbers: ids and seeds lie there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        by_mask = function is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype is torch.bool
        if by_mask or (function in READS and args[0].dtype is not torch.int64):
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are free to look at on a CPU are not looked at."""
    monkeypatch.setattr(_sde_arguments, "_readable", lambda values: False)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_loss_reads_nothing(name: str) -> None:
    kind, config = ALGORITHMS[name]
    algorithm = kind(Toy(), config)
    experience = algorithm.collect(batch(), Green(), 0)
    with Reads() as reads:
        for part in experience.parts(config.micro_batch):
            algorithm.loss(part)["loss"].backward()
    assert reads.found == []
    with Reads() as reads:
        for look in experience.looks:
            look()
    parts = len(list(experience.parts(config.micro_batch)))
    assert len(reads.found) == (0 if name in ("dpo", "nft") else parts)


def test_a_rollout_reads_nothing() -> None:
    given, generator = batch().repeat(3), Toy().requires_grad_(False)
    with Reads() as reads:
        sample(generator, given, 3, sample_generators(given.ids, "noise"))
        draws = sample_generators(given.ids, "noise")
        noise = initial_noise(generator, given, draws)
        sde_rollout(generator, given, noise, draws, 3, (0, 2), noise_level=0.7, kind="flow")
    assert reads.found == []


def test_reads_are_seen() -> None:
    x = torch.tensor([1.0, 0.0])
    with Reads() as reads:
        float(x[0])
        bool(x[0])
        x.tolist()
        x[x > 0]
        torch.tensor([3]).tolist()
    assert reads.found == ["__float__", "__bool__", "tolist", "__getitem__"]
