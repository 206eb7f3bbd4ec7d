"""`torch.compile` of what each step runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finpercep.rewards import Mixture, Reward
from finpercep.rl.generators import GeneratorModule
from finpercep.rl.held_out import HeldOut


def compile_run(generator: GeneratorModule, rewards: Sequence[Reward], held_out: HeldOut, device: torch.device) -> None:
    """Compile the generator's networks and the stages' rewards, in place, for any number of rows.

    Rewards that are no modules stay as they are. What a graph is first called with may decide how its kernels add up.
    So that it is the same in a run and in one that goes on, rewards are called here, with held-out photos; the
    generator's first results are of those anyway.
    """
    generator.compile_networks()
    for reward in rewards:
        for part in reward.parts.values() if isinstance(reward, Mixture) else [reward]:
            network: Any = part
            if isinstance(network, nn.Module) and isinstance(getattr(network, "reward", network), nn.Module):
                network.compile(dynamic=True)
                held_out.scores(held_out.photo, part, device)
