"""`python -m benchmarks.engine_shares [MODEL …] [--images 100]`: what the processor does between files and scores.

PNG files of mixed sizes, one after another in one thread, timed by the thread's processor time, so that other work on
the machine does not count: once as they are, and once under `cProfile`. What C functions take by themselves in the
profile is decoding (Pillow, zlib, numpy) or computing (torch, the kernels of the layers). The rest of the time without
a profile is called Python's; it holds what operators on tensors compute, too, which a profile does not see.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.engine
from benchmarks.engine import write_folder
from finpercep import RewardModel, Scorer

DECODERS = ("Imaging", "PIL", "zlib", "_io", "numpy", "posix")
Place = tuple[str, int, str]


def kind_of(place: Place) -> str:
    """What a function does, by its file, line and name; those of C have no file."""
    file, _, name = place
    if file == "~" and "torch" in name:
        return "computing"
    return "decoding" if file == "~" and any(part in name for part in DECODERS) else "Python"


def shares(stats: Mapping[Place, Any], seconds: float) -> dict[str, float]:
    """Parts of `seconds`, what the same calls took without a profile, by kind; `stats` are those of `pstats`."""
    own = {"computing": 0.0, "decoding": 0.0}
    for place, (_, _, spent, _, _) in stats.items():
        if (kind := kind_of(place)) in own:
            own[kind] += spent
    return {**{kind: spent / seconds for kind, spent in own.items()}, "Python": 1 - sum(own.values()) / seconds}


def measure(name: str, paths: Sequence[Path]) -> tuple[pstats.Stats, float]:
    """The profile, and the seconds of the same calls without it."""
    scorer = Scorer(RewardModel.from_pretrained(name).requires_grad_(False), lanes=2)  # one image stays in this thread

    def score() -> None:
        for path in paths:
            scorer.score([path])

    score()
    seconds = spent(score)
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(score)
    return pstats.Stats(profile), seconds


def spent(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["finpercep-tiny", "finpercep-small"])
    parser.add_argument("--images", type=int, default=100)
    given = parser.parse_args(arguments)
    benchmarks.engine.FORMATS = (("png", {}),)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_folder(Path(folder), given.images)
        for name in given.models:
            stats, seconds = measure(name, paths)
            stats.sort_stats("tottime").print_stats(25)
            found = shares(stats.stats, seconds)  # type: ignore[attr-defined]
            print(f"{name}, {1e3 * seconds / len(paths):.1f} ms of processor time an image:")
            print(", ".join(f"{kind} {100 * share:.0f} %" for kind, share in found.items()))


if __name__ == "__main__":
    main()
