"""The page of `finpercep evaluate-reward --page`: cases of the model as pictures, good and bad."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from finpercep.data import Scene
from finpercep.evaluation.baselines import Judge
from finpercep.evaluation.cases import GROUPS, choose_cases
from finpercep.evaluation.evaluate import Evaluation, PairResult
from finpercep.evaluation.trials import Trial, iterate_trials
from finpercep.io.files import atomic_write
from finpercep.io.html_page import html_page, inline_jpeg
from finpercep.io.pictures import as_picture, outlined, overlay

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["write_cases_page"]

STYLE = """main { max-width: 1500px; margin: 0 auto; padding: 40px 28px 60px; }
h1 { font-size: 30px; letter-spacing: -0.02em; margin: 0 0 8px; } h2 { font-size: 20px; margin: 40px 0 4px; }
p { color: #45454a; max-width: 62em; margin: 0 0 10px; }
article { background: #fff; border-radius: 10px; padding: 12px 16px 14px; margin: 14px 0;
  box-shadow: 0 1px 3px rgb(0 0 0 / 12%); }
h3 { font-size: 14px; margin: 0 0 8px; } h3 span { font-weight: 400; color: #6a6a70; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 8px; }
figure { margin: 0; } img { display: block; width: 100%; height: auto; border-radius: 4px; }
figcaption { font-size: 12.5px; color: #45454a; padding-top: 3px; font-variant-numeric: tabular-nums; }
"""


class _Drawn(NamedTuple):
    """A title and a picture."""

    title: str
    picture: PILImage.Image


def write_cases_page(path: Path, judge: Judge, evaluation: Evaluation, scenes: Sequence[Scene]) -> Path:
    """Write `choose_cases` of an evaluation as one self-contained HTML file, and return its path.

    Args:
        path: of the file.
        judge: what was evaluated; it sees the chosen images once more.
        evaluation: of that judge, on `scenes`.
        scenes: those that were evaluated.
    """
    chosen = choose_cases(evaluation.results)
    keys = {(pair.scene, pair.source) for pairs in chosen.values() for pair in pairs}
    wanted = {scene for scene, _ in keys}
    some = [scene for scene in scenes if scene.id in wanted]
    drawn: dict[tuple[str, str], list[_Drawn]] = {}
    for trial in iterate_trials(some, seed=evaluation.seed, faults=evaluation.faults, shift=evaluation.shift):
        for number, source in enumerate(trial.sources):
            if (trial.scene, source) in keys:
                drawn[trial.scene, source] = _draw(judge, trial, number)
    with atomic_write(path) as file:
        file.write(html_page(f"Cases of {evaluation.name}", _body(evaluation, chosen, drawn), style=STYLE).encode())
    return path


@torch.no_grad()
def _draw(judge: Judge, trial: Trial, number: int) -> list[_Drawn]:
    """Photo, result and implanted photo, the maps of all three, and what the last should be."""
    images = {"photo": trial.photo, "result": trial.restored[number], "implanted": trial.implanted[number]}
    mask = trial.masks[number][None]
    maps = judge(list(images.values())).map

    def framed(picture: PILImage.Image, name: str) -> PILImage.Image:
        return outlined(picture, mask) if name == "implanted" else picture

    drawn = [_Drawn(name, framed(as_picture(image), name)) for name, image in images.items()]
    if maps is None:
        return drawn
    for (name, image), one in zip(images.items(), maps, strict=True):
        degradation = _two_dimensional(one)
        drawn.append(
            _Drawn(f"map: {name}, mean {float(degradation.mean()):.3f}", framed(overlay(image, degradation), name))
        )
    target = overlay(images["implanted"], trial.targets[number])
    return [*drawn, _Drawn("M_gt: implanted", outlined(target, mask))]


def _two_dimensional(degradation: Tensor) -> Tensor:
    return torch.as_tensor(degradation).float().cpu().reshape(degradation.shape[-2:])


def _body(
    evaluation: Evaluation,
    chosen: Mapping[str, Sequence[PairResult]],
    drawn: Mapping[tuple[str, str], Sequence[_Drawn]],
) -> str:
    sections = "".join(
        f"<h2>{GROUPS[name]}</h2>{''.join(_article(pair, drawn[pair.scene, pair.source]) for pair in pairs)}"
        for name, pairs in chosen.items()
    )
    counts = evaluation.overall
    return f"""<main><h1>{html.escape(evaluation.name)}: cases</h1>
<p>From {counts["pairs"]:.0f} pairs of photo and result of {counts["scenes"]:.0f} scenes, shift
{html.escape(evaluation.shift)}, chosen by their figures alone. The implanted image is the photo with the outlined boxes
of the result; M_gt is what its map was compared with. The model sees one image at a time and never the photo beside
it.</p>{sections}</main>"""


def _article(pair: PairResult, drawn: Sequence[_Drawn]) -> str:
    parts = []
    if pair.scores is not None:
        photo, result, implanted = pair.scores
        parts.append(f"scores: photo {photo:.3f}, result {result:.3f}, implanted {implanted:.3f}")
    if pair.map is not None:
        parts.append(f"AUC {pair.map['auc']:.3f}, CC {pair.map['cc']:.3f}")
    figures = "".join(
        f'<figure><img src="{inline_jpeg(one.picture, quality=85)}" alt="{html.escape(one.title)}" '
        f'width="{one.picture.width}" height="{one.picture.height}"><figcaption>{html.escape(one.title)}</figcaption>'
        "</figure>"
        for one in drawn
    )
    title = f"{html.escape(pair.scene)}, {html.escape(pair.source)} <span>{'; '.join(parts)}</span>"
    return f'<article><h3>{title}</h3><div class="row">{figures}</div></article>'
