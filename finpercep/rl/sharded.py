"""Frozen weights divided among the processes (FSDP2); what is trained stays whole on each of them."""

from __future__ import annotations

import torch
from torch import nn

from finpercep.rl.generators import GeneratorModule
from finpercep.runs.ranks import Ranks


def shard_networks(generator: GeneratorModule, ranks: Ranks, device: torch.device) -> None:
    """Leave each process its part of the generator's frozen weights; a block's are put together while it runs.

    Blocks are those of a network's lists, such as `transformer_blocks`. From now on all processes must call the
    networks equally often, and in the same order. One process alone keeps all.

    Raises:
        ValueError: the reference is a copy of the generator, so that there is more than adapters to train.
    """
    if generator.has_copy:
        raise ValueError(
            "shard: expected a pipeline of diffusers with generator_options.train lora, whose own weights are frozen; "
            f"got {type(generator).__name__} with weights that are trained themselves"
        )
    if ranks.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks.size,))
    trained = set(generator.trainable_parameters())
    for network in generator.networks():
        lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
        for module in [*(block for blocks in lists for block in blocks), network]:
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
