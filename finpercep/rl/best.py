"""Which measurement of a run was best by a held-out measure: its generator is kept beside the last one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor


class Best:
    """Looks for the highest (or lowest, where less is better) mean of one held-out measure.

    Args:
        name: of the measure.
        better: all measures, name -> 1 where more is better, -1 where less is.

    Attributes:
        value: the best mean so far, times its sign; None before the first measurement.

    Raises:
        ValueError: no such measure.
    """

    def __init__(self, name: str, better: Mapping[str, int]) -> None:
        if name not in better:
            raise ValueError(f"monitors.best: expected one of {', '.join(better)}, got {name!r}")
        self.name, self.sign = name, better[name]
        self.value: float | None = None

    def improved(self, values: Mapping[str, Tensor]) -> bool:
        """Whether a measurement, name -> (B,), is the best so far, which it then is; one that is not finite never is.

        Raises:
            ValueError: the measure is not in it.
        """
        if self.name not in values:
            raise ValueError(f"monitors.best: expected a measure of this run, got {self.name!r}, which has none")
        found = self.sign * float(values[self.name].double().mean())
        if not math.isfinite(found) or (self.value is not None and found <= self.value):
            return False
        self.value = found
        return True
