"""Named starting points around public CLIP checkpoints; `RewardModel.from_preset` builds one."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """A public CLIP checkpoint and the layers whose features are used; the last one is its last layer."""

    clip: str
    patch_size: int
    taps: tuple[int, ...]


PRESETS = {
    "finpercep-vit-b-16": Preset("openai/clip-vit-base-patch16", 16, (3, 6, 9, 12)),
    "finpercep-vit-l-14": Preset("openai/clip-vit-large-patch14", 14, (6, 12, 18, 24)),
}
