"""``python -m benchmarks.target_choices SR_PAIRS``: what alpha, normalization and restriction do to the targets.

Implants faults into training photos of a folder with `index.jsonl` (never `val`), as `finpercep make-dataset` does, and
compares the targets under other choices. Prints the tables and draws the sheet of docs/data.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep import ops
from finpercep.data import FilterBank, Scene, load_scenes
from finpercep.data.dataset.config import MakeConfig
from finpercep.data.masks.kinds import open_mask_kind
from finpercep.data.masks.maker import MaskMaker
from finpercep.data.randomness import seeded
from finpercep.data.swap import region_swap
from finpercep.io.pictures import outlined, overlay, save_image

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
FAINT = 13  # of 255: how much of a result is left in an "almost perfect" one, 5 %
SIDE = 150  # of a picture on the sheet


class Choice(NamedTuple):
    """Arguments of `ops.degradation_target`."""

    alpha: float = MakeConfig.alpha
    normalize: str = "scale"


class Fault(NamedTuple):
    """A photo, a result implanted through a mask and faintly implanted; the features of each."""

    gt: Tensor
    sr: Tensor
    syn: Tensor
    faint: Tensor
    mask: Tensor
    features: dict[str, Tensor]  # by the names above


def faults(
    scenes: Sequence[Scene], extract: Callable[[Tensor], Tensor], images: Sequence[str] = ("sr", "syn", "faint")
) -> list[Fault]:
    """One for each scene and source, without feathering; with the features of the photo and of `images`."""
    kinds = [open_mask_kind(name, "") for name in ("random", "superpixels")]
    maker, made = MaskMaker(kinds, feathered=0), []
    for scene in scenes:
        prepared, of_gt = maker.prepare(scene.gt), extract(scene.gt[None].float() / 255)
        for source in scene.sources:
            drawn = maker.draw(prepared, scene.gt, seeded(0, scene.id, source))
            gt, sr = scene.gt, scene.sr(source)
            syn, faint = region_swap(gt, sr, drawn.alpha), region_swap(gt, sr, torch.full_like(drawn.alpha, FAINT))
            fault = Fault(gt, sr, syn, faint, drawn.hard, {"gt": of_gt})
            for name in images:
                fault.features[name] = extract(getattr(fault, name)[None].float() / 255)
            made.append(fault)
    return made


def target(fault: Fault, which: str, choice: Choice) -> Tensor:
    """The map (H,W) of one of a fault's images."""
    image = getattr(fault, which)
    return ops.degradation_target(
        fault.gt[None],
        image[None],
        fault.features["gt"],
        fault.features[which],
        alpha=choice.alpha,
        normalize=choice.normalize,
        scale=MakeConfig.target_scale,
    )[0, 0]


def ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of (N,) without ties."""
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def auc(values: Tensor, inside: Tensor) -> float:
    """Probability that a pixel inside has a higher value than one outside; ties count half."""
    order = values.flatten().double()
    unique, number = order.unique(return_inverse=True)
    hits, all_ = torch.zeros(len(unique)).double(), torch.zeros(len(unique)).double()
    all_.index_add_(0, number, torch.ones_like(order))
    hits.index_add_(0, number, inside.flatten().double())
    misses = all_ - hits
    below = misses.cumsum(0) - misses
    return float((hits * (below + misses / 2)).sum() / (hits.sum() * misses.sum()))


def iou_half(values: Tensor, inside: Tensor) -> float:
    """IoU of what is at least 0.5 with a mask: what a model that gives these targets exactly would reach."""
    found = values >= 0.5
    return float((found & inside).sum() / (found | inside).sum())


def separation(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> dict[str, float]:
    """How targets (H,W) tell their masks' pixels from the others, and how far they reach beyond."""
    pairs, count = list(zip(maps, masks, strict=True)), len(maps)
    mass = sum(float(m.sum()) for m in maps)
    steps = [(m[:, 1:] - m[:, :-1]).abs() * (inside[:, 1:] & inside[:, :-1]) for m, inside in pairs]
    return {
        "within": sum(float(m[inside].mean()) for m, inside in pairs) / count,
        "beyond": sum(float(m[~inside].mean()) for m, inside in pairs) / count,
        "mass": sum(float(m[~inside].sum()) for m, inside in pairs) / mass,
        "auc": sum(auc(m, inside) for m, inside in pairs) / count,
        "iou": sum(iou_half(m, inside) for m, inside in pairs) / count,
        "grain": sum(float(s.sum()) for s in steps) / sum(float(m[inside].sum()) for m, inside in pairs),
    }


def alpha_table(made: Sequence[Fault]) -> list[str]:
    """How far the target reaches beyond its mask, and what order it puts samples in."""
    severity = {}
    lines = [
        "| alpha | mean inside | mean outside | mass outside | AUC of the mask | IoU at 0.5 | grain "
        "| rank correlation with 0.25 |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = {}
    for alpha in ALPHAS:
        maps = [target(fault, "syn", Choice(alpha)) for fault in made]
        severity[alpha] = torch.stack([m[f.mask[0]].mean() for m, f in zip(maps, made, strict=True)])
        rows[alpha] = separation(maps, [fault.mask[0] for fault in made])
    for alpha, row in rows.items():
        same = rank_correlation(severity[alpha], severity[0.25])
        lines.append(
            f"| {alpha:g} | {row['within']:.2f} | {row['beyond']:.3f} | {row['mass']:.0%} | {row['auc']:.3f} "
            f"| {row['iou']:.2f} | {row['grain']:.2f} | {same:.2f} |"
        )
    return lines


def normalization_table(made: Sequence[Fault]) -> list[str]:
    """Whether a number means the same in every image."""
    difference = torch.stack([(f.syn.float() - f.gt.float()).abs().mean(0)[f.mask[0]].mean() for f in made])
    lines = [
        "| normalize | mean inside | mean, whole result | mean, 5 % of the result | its highest pixel "
        "| rank correlation of severity with the pixel difference |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in ("scale", "minmax", "percentile"):
        choice = Choice(normalize=name)
        inside = torch.stack([target(f, "syn", choice)[f.mask[0]].mean() for f in made])
        whole = torch.stack([target(f, "sr", choice).mean() for f in made])
        faint = [target(f, "faint", choice) for f in made]
        lines.append(
            f"| {name} | {inside.mean():.2f} | {whole.mean():.2f} "
            f"| {sum(float(m.mean()) for m in faint) / len(made):.3f} "
            f"| {sum(float(m.amax()) for m in faint) / len(made):.2f} "
            f"| {rank_correlation(inside, difference):.2f} |"
        )
    return lines


def restriction_table(made: Sequence[Fault]) -> list[str]:
    """What `--restrict` takes away: the target where the image is the photo."""
    lines = [
        "| pixels outside the mask, by distance from it | share of the outside | mean target |",
        "|---|---:|---:|",
    ]
    sums = torch.zeros(4, 2).double()
    for fault in made:
        found, far = target(fault, "syn", Choice()), torch.full(fault.mask.shape[1:], 3)
        for ring, reach in ((2, 32), (1, 16), (0, 8)):
            grown = F.max_pool2d(fault.mask[None].float(), (2 * reach + 1, 1), 1, (reach, 0))
            grown = F.max_pool2d(grown, (1, 2 * reach + 1), 1, (0, reach))[0, 0] > 0
            far[grown] = ring
        for ring in range(4):
            there = (far == ring) & ~fault.mask[0]
            sums[ring] += torch.tensor([float(there.sum()), float(found[there].sum())])
    for ring, name in enumerate(("up to 8", "8 to 16", "16 to 32", "more")):
        share = sums[ring, 0] / sums[:, 0].sum()
        lines.append(f"| {name} | {share:.1%} | {sums[ring, 1] / sums[ring, 0]:.3f} |")
    return lines


def sheet(made: Sequence[Fault], path: Path) -> None:
    """A line per fault: photo, implanted, and its targets; last the same result at 5 %."""
    from PIL import Image, ImageDraw, ImageFont

    columns: list[tuple[str, Choice | None]] = [("photo", None), ("implanted", None)]
    columns += [(f"alpha {alpha:g}", Choice(alpha)) for alpha in (0.0, 0.25, 0.5, 1.0)]
    columns += [("minmax", Choice(normalize="minmax")), ("percentile", Choice(normalize="percentile"))]
    columns += [("restricted", Choice())]
    gap, head = 6, 28
    size = (gap + len(columns) * (SIDE + gap), head + (len(made) + 1) * (SIDE + gap))
    page = Image.new("RGB", size, "#f4f4f1")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for column, (title, _) in enumerate(columns):
        draw.text((gap + column * (SIDE + gap), 7), title, "#1d1d1f", font)

    def picture(fault: Fault, which: str, title: str, choice: Choice | None) -> Image.Image:
        shown = fault.gt if title == "photo" else getattr(fault, which)
        if choice is None:
            small = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy()).resize((SIDE, SIDE), 1)
            return outlined(small, fault.mask) if title != "photo" and which == "syn" else small
        found = target(fault, which, choice)
        if title == "restricted" and which == "syn":
            found = found * fault.mask[0]
        return overlay(shown, found[None]).convert("RGB").resize((SIDE, SIDE), 1)

    lines = [(fault, "syn") for fault in made] + [(made[0], "faint")]
    for row, (fault, which) in enumerate(lines):
        for column, (title, choice) in enumerate(columns):
            at = (gap + column * (SIDE + gap), head + row * (SIDE + gap))
            page.paste(picture(fault, which, title, choice), at)
    save_image(page, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", help="folder with index.jsonl")
    parser.add_argument("--every", type=int, default=5, help="take every n-th training scene")
    parser.add_argument("--sheet", type=Path, default=Path("docs/targets.png"))
    parser.add_argument("--shown", type=int, nargs="+", default=[1, 33, 62, 99, 134], help="faults on the sheet")
    arguments = parser.parse_args()
    scenes = load_scenes(arguments.data, "train")[:: arguments.every]
    with torch.no_grad():
        made = faults(scenes, FilterBank())
        print(f"{len(made)} faults of {len(scenes)} training scenes\n")
        for table in (alpha_table, normalization_table, restriction_table):
            print("\n".join(table(made)), end="\n\n")
        sheet([made[number] for number in arguments.shown], arguments.sheet)


if __name__ == "__main__":
    main()
