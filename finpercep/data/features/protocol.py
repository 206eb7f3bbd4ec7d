"""What a feature extractor of the fault target is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Features"]


class Features(Protocol):
    """Maps images (B,3,H,W), float in [0, 1], to features (B,C,h,w); `fingerprint` changes when they would."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def __call__(self, images: Tensor) -> Tensor: ...
