"""``finpercep demo``: photos, super-resolved versions of them and implanted faults, scored and mapped on one page.

Needs nothing from outside: the photos come inside scikit-image, the faults are made here from 2 to 4.5 times smaller
copies by the naive reconstructions of `finpercep.data.sources.synthetic`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.demo_photos import load_photo
from finpercep.data.masks.simple import region_swap
from finpercep.data.sources.synthetic import synthetic_source
from finpercep.demo.page import write_page, write_sheet
from finpercep.engine.files import score_image

if TYPE_CHECKING:
    from finpercep.models import RewardModel

__all__ = ["Case", "Scene", "make_scene", "run_demo", "score_scene"]

BOX_SIDE = 0.34  # of the photo's sides: large enough to see, small enough that most of the photo stays clean

# of `demo_photos.PHOTOS` -> (source of its super-resolved version, seed of its strength, what to look at)
FAULTS: dict[str, tuple[str, int, str]] = {
    "astronaut": (
        "oversharp",
        0,
        "Enlarged and sharpened too hard: halos along edges, hair and cloth lost between them.",
    ),
    "chelsea": (
        "smooth",
        1,
        "Enlarged by interpolation: fur and whiskers are gone; the blurred background lost little.",
    ),
    "coffee": (
        "painterly",
        2,
        "Flat strokes with crisp edges: the wood lost its grain, the large shapes did not.",
    ),
    "rocket": (
        "checkerboard",
        3,
        "The periodic pattern of a strided upsampler, strongest on the lattice towers.",
    ),
    "motorcycle": ("grain", 4, "Invented texture: crisp at first sight, but not what was there."),
    "camera": (
        "oversharp",
        1,
        "A grey photo: halos around the coat and the tripod, and noise sharpened along.",
    ),
}


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
    """Make the super-resolved version and implant its most different box into the photo. Not scored yet."""
    rebuilt = synthetic_source(source, photo, torch.Generator().manual_seed(seed))
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


def run_demo(model: RewardModel, folder: Path, model_name: str) -> Path:
    """Score every scene, write ``index.html`` and ``sheet.png`` into `folder`, print a table; returns the page."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("photo", "fault", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("photo", "super-res.", "implanted", "inside", "outside"):
        table.add_column(column, justify="right")
    scenes = []
    seconds = 0.0
    for name, (source, seed, note) in FAULTS.items():
        scene = make_scene(name, load_photo(name), source, note, seed)
        start = time.perf_counter()
        scenes.append(score_scene(model, scene))
        seconds += time.perf_counter() - start
        photo, rebuilt, implanted = scenes[-1].cases
        figures = (photo.score, rebuilt.score, implanted.score, *implanted.inside_outside())
        table.add_row(name, source, *(f"{figure:.3f}" for figure in figures))
    page = write_page(scenes, folder / "index.html", model_name, model.fingerprint, seconds)
    sheet = write_sheet(scenes, folder / "sheet.png")
    console.print("Scores (1 = clean); mean map inside and outside of the implanted box\n")
    console.print(table)
    console.print(f"\npage   {page}\nsheet  {sheet}", soft_wrap=True)
    return page
