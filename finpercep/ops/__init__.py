"""Public operators. Each family is one file: reference (the definition), fake, autograd and backend choice."""

from finpercep.ops._backend import backends
from finpercep.ops.degradation_target import degradation_target, degradation_target_reference
from finpercep.ops.modulate import modulate, modulate_reference

__all__ = [
    "backends",
    "degradation_target",
    "degradation_target_reference",
    "modulate",
    "modulate_reference",
]
