"""``python -m benchmarks.reward_families DATA... --runs DIR``: families of super-resolution models left out.

A model that has seen four GANs of one kind has seen a fifth in all but name, so whole families are left out: for each
that the data have, and for none, RM_0 and the full model are trained without it, several seeds, and measured on the
`val` scenes of that family alone. Writes `reward_families.json` and `.md` after each run; runs that are in it already
are not repeated, and one that was stopped goes on. One core; a run of the default length takes minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from benchmarks.reward_runs import FIGURES, Run, cell, collect, measured, parser, trained
from finpercep.data import Scene, load_scenes

FAMILIES = {
    "gan": ("realesrgan-x4plus*", "realsr-*", "esrgan-*", "srgan*"),  # large GANs: RRDB, SRResNet
    "span": ("span-*",),
    "compact": ("upscayl-lite", "animevideov3", "realesr-general*", "*-compact-*"),
    "psnr": ("imdn", "rlfn", "craft"),  # trained on pixel differences
    "vae": ("vae-*",),  # stand-ins for latent diffusion
    "diffusion": ("osediff*",),
}
NOTHING = "none"


def members(family: str, sources: Sequence[str]) -> list[str]:
    """The sources of a family."""
    return [name for name in sources if any(fnmatch(name, pattern) for pattern in FAMILIES.get(family, ()))]


def sources_of(data: Sequence[str], split: str) -> list[str]:
    return sorted({name for folder in data for scene in load_scenes(folder, split) for name in scene.sources})


def scenes_of(data: Sequence[str], family: str) -> list[Scene]:
    """The `val` scenes that have results of a family, with these alone."""
    found = []
    for folder in data:
        known = sources_of([folder], "val")
        kept = members(family, known)
        scenes = load_scenes(folder, "val", leave_out=[name for name in known if name not in kept])
        found += [scene for scene in scenes if scene.sources]
    return found


def table(found: dict[str, list[Run]]) -> str:
    """Markdown: each family by the models that never saw it, and by those that saw all."""
    heads = [f"{name} {who}" for name in FIGURES.values() for who in ("unseen", "seen")]
    lines = [f"| family | pairs | seeds | {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) + 2)]
    for family in (name for name in found if name != NOTHING):
        unseen = [run[family] for run in found[family]]
        seen = [run[family] for run in found.get(NOTHING, []) if family in run]
        cells = [cell([one[name] for one in which]) for name in FIGURES for which in (unseen, seen)]
        lines.append(f"| {family} | {unseen[0]['pairs']} | {len(unseen)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, "runs/reward_families")
    arguments.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    args = arguments.parse_args(words)
    known, val = sources_of(args.data, "train"), sources_of(args.data, "val")
    families = [name for name in args.families if members(name, known) and members(name, val)]
    if not families:
        arguments.error(
            f"data: expected sources of {', '.join(args.families)} in train and val, got {', '.join(known)}"
        )

    def run(name: str, seed: int) -> Run:
        model = trained(args, name, seed, leave_out=members(name, known))
        measure = families if name == NOTHING else [name]
        return {family: measured(model, scenes_of(args.data, family)) for family in measure}

    print(table(collect(args.results / "reward_families.json", [NOTHING, *families], args, run, table)))


if __name__ == "__main__":
    main()
