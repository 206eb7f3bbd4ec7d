"""Public operators. Each family is one file: reference (the definition), fake, autograd and backend choice.

`_backend` chooses what runs, `_registration` tells torch of shapes and gradients, `_sde_arguments` checks what
`sde_step` takes.
"""

from finpercep.ops._backend import backends, has_cpp, transformed
from finpercep.ops.advantage import GroupStats, group_advantage, group_advantage_reference
from finpercep.ops.degradation_target import degradation_target, degradation_target_reference
from finpercep.ops.grpo import GRPOStats, grpo_loss, grpo_loss_reference
from finpercep.ops.modulate import modulate, modulate_reference
from finpercep.ops.sde import SDEStep, sde_step, sde_step_reference

__all__ = [
    "GRPOStats",
    "GroupStats",
    "SDEStep",
    "backends",
    "degradation_target",
    "degradation_target_reference",
    "group_advantage",
    "group_advantage_reference",
    "grpo_loss",
    "grpo_loss_reference",
    "has_cpp",
    "modulate",
    "modulate_reference",
    "sde_step",
    "sde_step_reference",
    "transformed",
]
