"""What the demo shows of each photo: itself, its super-resolved version, and the photo with a box of that in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.sources.synthetic import synthetic_source
from finpercep.data.swap import region_swap
from finpercep.engine.files import score_image

if TYPE_CHECKING:
    from finpercep.models import RewardModel

__all__ = ["Case", "Scene", "implant", "make_scene", "most_different_box", "score_scene"]

BOX_SIDE = 0.34  # of the photo's sides: large enough to see, small enough that most of the photo stays clean


class Case(NamedTuple):
    """One image ``(3, H, W)``, float in [0, 1], and its figures; `box`: left, top, right, bottom of the fault."""

    kind: str
    image: Tensor
    box: tuple[int, int, int, int] | None = None
    score: float = float("nan")
    map_mean: float = float("nan")
    map_worst: float = float("nan")
    map: Tensor | None = None

    def inside_outside(self) -> tuple[float, float]:
        """Mean of the map inside and outside the implanted box."""
        assert self.map is not None
        assert self.box is not None
        left, top, right, bottom = self.box
        inside = torch.zeros_like(self.map, dtype=torch.bool)
        inside[:, top:bottom, left:right] = True
        return float(self.map[inside].mean()), float(self.map[~inside].mean())


class Scene(NamedTuple):
    """A photo, its super-resolved version and the photo with an implanted fault, in this order."""

    name: str
    source: str
    note: str
    cases: tuple[Case, ...]

    @property
    def ordered(self) -> bool:
        """Whether photo > implanted fault > super-resolved version."""
        photo, rebuilt, implanted = self.cases
        return photo.score > implanted.score > rebuilt.score


def make_scene(name: str, photo: Tensor, source: str, note: str = "", seed: int = 0) -> Scene:
    """Make the super-resolved version by a synthetic source and implant its faults. Not scored yet."""
    return implant(name, photo, synthetic_source(source, photo, torch.Generator().manual_seed(seed)), source, note)


def implant(name: str, photo: Tensor, rebuilt: Tensor, source: str, note: str = "") -> Scene:
    """A scene of a photo and its super-resolved version (3,H,W), whose most different box is put into the photo."""
    left, top, right, bottom = box = most_different_box(photo, rebuilt)
    mask = torch.zeros_like(photo[:1], dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    implanted = region_swap(photo, rebuilt, mask)
    return Scene(
        name,
        source,
        note,
        (Case("photo", photo), Case("rebuilt", rebuilt), Case("implanted", implanted, box)),
    )


def most_different_box(photo: Tensor, rebuilt: Tensor) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) in which two images differ most on average: a fault that can be seen."""
    height, width = photo.shape[1:]
    rows, columns = max(1, round(BOX_SIDE * height)), max(1, round(BOX_SIDE * width))
    difference = (photo - rebuilt).abs().double().mean(0)
    total = F.pad(difference, (1, 0, 1, 0)).cumsum(0).cumsum(1)  # of all pixels above and left
    sums = total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return left, top, left + columns, top + rows


def score_scene(model: RewardModel, scene: Scene) -> Scene:
    """The same scene with every case scored and mapped."""
    cases = []
    for case in scene.cases:
        score, mean, worst, degradation = score_image(model, case.image)
        cases.append(case._replace(score=score, map_mean=mean, map_worst=worst, map=degradation))
    return scene._replace(cases=tuple(cases))
