"""Sources that need no weights: bicubic interpolation, and synthetic faults."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from finpercep.data.image_ops import to_uint8
from finpercep.data.sources.protocol import Source, SourceInput
from finpercep.data.sources.synthetic import SYNTHETIC_SOURCES, synthetic_source

__all__ = ["BUILTIN", "BicubicSource", "BuiltinSource", "builtin_source"]

BUILTIN = ("bicubic", *sorted(SYNTHETIC_SOURCES))


def builtin_source(name: str) -> Source:
    """The source of one of the names in `BUILTIN`."""
    return BicubicSource() if name == "bicubic" else BuiltinSource(name)


@dataclass(frozen=True)
class BuiltinSource:
    """One of `SYNTHETIC_SOURCES`: faults made from the photo alone."""

    name: str
    fingerprint: str = "builtin-1"
    needs_lr: bool = False

    def __call__(self, given: SourceInput) -> Tensor:
        return to_uint8(synthetic_source(self.name, given.gt.float() / 255, given.generator))


@dataclass(frozen=True)
class BicubicSource:
    """The low-resolution image, enlarged: what every model is compared with."""

    name: str = "bicubic"
    fingerprint: str = "builtin-1"
    needs_lr: bool = True

    def __call__(self, given: SourceInput) -> Tensor:
        assert given.lr is not None
        low = given.lr[None].float() / 255
        return to_uint8(F.interpolate(low, given.gt.shape[1:], mode="bicubic", align_corners=False)[0].clamp(0, 1))
