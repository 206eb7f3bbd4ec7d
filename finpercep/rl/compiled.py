"""`torch.compile` of what each step runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finpercep.rewards import Mixture, Reward
from finpercep.rl.generators import GeneratorModule
from finpercep.rl.held_out import HeldOut

GRAPHS = 4
"""Of a reward, at most."""


def compile_run(generator: GeneratorModule, rewards: Sequence[Reward], held_out: HeldOut, device: torch.device) -> None:
    """Compile the generator's networks and the stages' rewards, in place, for any number of rows.

    Rewards that are no modules stay as they are. What a graph is first called with may decide how its kernels add up.
    So that it is the same in a run and in one that goes on, rewards are called here, with held-out photos; the
    generator's first results are of those anyway.
    """
    generator.compile_networks()
    parts = sum(len(reward.parts) if isinstance(reward, Mixture) else 1 for reward in rewards)
    # Stages share their code, and so torch's limit, behind which it goes on without compiling: with and without a
    # gradient, and of one row or more.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, GRAPHS * parts)
    for reward in rewards:
        for part in reward.parts.values() if isinstance(reward, Mixture) else [reward]:
            network: Any = part
            if isinstance(network, nn.Module) and isinstance(getattr(network, "reward", network), nn.Module):
                network.compile(dynamic=True)
                held_out.scores(held_out.photo, part, device)
