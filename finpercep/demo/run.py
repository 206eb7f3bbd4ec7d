"""``finpercep demo``: photos, super-resolved versions of them and implanted faults, scored and mapped on one page.

Needs nothing from outside: the photos come inside scikit-image, the faults are made here from 2 to 4.5 times smaller
copies by the naive reconstructions of `finpercep.data.sources.synthetic`, and by a real GAN where one is installed. At
the end the embedded generator climbs the reward for a minute or two.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from finpercep.data.demo_photos import load_photo
from finpercep.demo.climb import STEPS, check_folder, climb
from finpercep.demo.page import write_page, write_sheet
from finpercep.demo.real_faults import MORE, real_scene
from finpercep.demo.scenes import make_scene, score_scene

if TYPE_CHECKING:
    from finpercep.models import RewardModel

__all__ = ["FAULTS", "run_demo"]

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
    "coffee": ("painterly", 2, "Flat strokes with crisp edges: the wood lost its grain, the large shapes did not."),
    "rocket": ("checkerboard", 3, "The periodic pattern of a strided upsampler, strongest on the lattice towers."),
    "motorcycle": ("grain", 4, "Invented texture: crisp at first sight, but not what was there."),
    "camera": ("oversharp", 1, "A gray photo: halos around the coat and the tripod, and noise sharpened along."),
}


def run_demo(model: RewardModel, folder: Path, model_name: str, rl_steps: int = STEPS) -> Path:
    """Score every scene, let a generator climb the reward, write ``index.html`` and ``sheet.png``, and print a table.

    Args:
        model: a model with a map.
        folder: made if need be.
        model_name: as it was loaded, for the page.
        rl_steps: updates of the embedded generator, in ``rl/``; 0 leaves them out.

    Returns:
        The page.

    Raises:
        ImportError: scikit-image is not installed.
        FileExistsError: ``rl/photos`` or ``rl/run`` are there, and no demo made them.
        OSError: `folder` cannot be written to.
    """
    from rich.console import Console
    from rich.table import Table

    if rl_steps:
        check_folder(folder / "rl")  # before the work rather than after it
    console = Console(highlight=False, markup=False, emoji=False)
    table = Table("photo", "fault", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("photo", "super-res.", "implanted", "inside", "outside"):
        table.add_column(column, justify="right")
    scenes = []
    seconds = 0.0
    drawn = [make_scene(name, load_photo(name), source, note, seed) for name, (source, seed, note) in FAULTS.items()]
    real = real_scene("coffee", load_photo("coffee"))
    for scene in drawn if real is None else [real, *drawn]:
        start = time.perf_counter()
        scenes.append(score_scene(model, scene))
        seconds += time.perf_counter() - start
        photo, rebuilt, implanted = scenes[-1].cases
        figures = (photo.score, rebuilt.score, implanted.score, *implanted.inside_outside())
        table.add_row(scene.name, scene.source, *(f"{figure:.3f}" for figure in figures))
    sheet = write_sheet(scenes, folder / "sheet.png")
    console.print("Scores (1 = clean); mean map inside and outside of the implanted box\n")
    console.print(table)
    if real is None:
        console.print(f"\n{MORE}", soft_wrap=True)
    training = ""
    if rl_steps:
        console.print(f"\n{rl_steps} updates of the embedded generator against the reward", soft_wrap=True)
        training = climb(folder / "rl", rl_steps)
    page = write_page(scenes, folder / "index.html", model_name, model.fingerprint, seconds, training)
    console.print(f"\npage   {page}\nsheet  {sheet}", soft_wrap=True)
    return page
