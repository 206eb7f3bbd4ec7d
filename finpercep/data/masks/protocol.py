"""What a kind of masks is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["MaskKind"]


class MaskKind(Protocol):
    """Draws masks on an image; `prepare` is called once per image, `draw` for each mask.

    Attributes:
        name: as it appears in the data set.
        fingerprint: changes when the masks would.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def prepare(self, image: Tensor) -> Any:
        """What `draw` needs to know of an image, uint8 (3,H,W)."""

    def draw(
        self, prepared: Any, image: Tensor, generator: torch.Generator, area: tuple[float, float]
    ) -> Tensor | None:
        """A mask (1,H,W), bool, or None where the image has none of this kind that covers a fraction in `area`."""
