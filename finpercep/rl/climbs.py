"""The climb test of a run's own reward on held-out results: how far pixels alone are moved up it, and for what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from finpercep.data import Scene
from finpercep.evaluation.climb import Climb, climb_all
from finpercep.rewards import Reward

SOURCE = "generator"


def check_climb(rewards: Mapping[str, Reward], photo: Tensor) -> None:
    """Refuse rewards that pixels cannot be moved up, before the run instead of behind it.

    Args:
        rewards: those of the stages, by name.
        photo: (1,3,H,W) on their device, to ask them for a gradient.

    Raises:
        ValueError: a reward takes more than images, or gives no gradient.
    """
    for name, reward in rewards.items():
        if getattr(reward, "takes", ()) or not reward(photo.clone().requires_grad_()).score.requires_grad:
            raise ValueError(
                f"monitors.climb: expected rewards of images alone, with gradients to the pixels, or 0, got {name}"
            )


def climb_results(reward: Reward, images: Tensor, photos: Tensor, aligned: Tensor, device: torch.device) -> list[Climb]:
    """`climb_test` of each result (B,3,H,W), as files hold it, against its photo; both float in [0, 1], on the CPU.

    `aligned` (B,) says which photos and results lie on the same pixels, see `Scene`.
    """
    scenes = []
    for number, (photo, result, same) in enumerate(zip(photos, images, aligned.tolist(), strict=True)):
        loaded = {name: (image * 255).round().to(torch.uint8) for name, image in (("", photo), (SOURCE, result))}
        scenes.append(Scene(str(number), Path(), {SOURCE: Path()}, loaded, aligned=same))
    return climb_all(reward, scenes, len(scenes), device=str(device))
