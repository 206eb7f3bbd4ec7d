"""Loading scenes, from a folder with an index or from a data set that `make_dataset` made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from finpercep.data.dataset.stored import is_stored, stored_scenes
from finpercep.data.scenes import Scene
from finpercep.io.files import read_text

__all__ = ["check_inside", "load_scenes"]


def load_scenes(root: str | Path, split: str, *, leave_out: Sequence[str] = ()) -> list[Scene]:
    """Scenes of one split of a folder with an `index.jsonl`, or of a data set that `make_dataset` made.

    Each line of the index has `split`, `id`, `gt` and `sr` (source name -> file name); the files lie in
    `<root>/<split>/<id>/`. A line with `shift_px` is of a pair that a camera took twice (`Scene.aligned`).

    Args:
        root: folder with `index.jsonl`.
        split: "train" or "val" (any name that the index uses).
        leave_out: sources to leave out, for tests on sources that training has not seen.

    Raises:
        FileNotFoundError: no index.
        ValueError: a line that cannot be read or that names a file outside its folder, an unknown source in
            `leave_out`, or no scene in the split.
    """
    if is_stored(root):
        return list(stored_scenes(root, split, leave_out=leave_out))
    index = Path(root) / "index.jsonl"
    if not index.is_file():
        raise FileNotFoundError(
            f"{index}: not found; expected a data set that make-dataset made, or a folder with index.jsonl"
        )
    scenes, known, splits = [], set(), set()
    for number, line in enumerate(read_text(index).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            known.update(row["sr"])
            splits.add(row["split"])
            if row["split"] != split:
                continue
            check_inside(index, number, [row["id"], row["gt"], *row["sr"].values()])
            folder = index.parent / split / row["id"]
            sr_paths = {name: folder / file for name, file in row["sr"].items() if name not in leave_out}
            scenes.append(Scene(row["id"], folder / row["gt"], sr_paths, aligned="shift_px" not in row))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}:{number}: expected a scene (split, id, gt, sr), got {error!r}") from error
    unknown = set(leave_out) - known
    if unknown:
        raise ValueError(f"leave_out: {sorted(unknown)} not among the sources {sorted(known)}")
    if not scenes:
        raise ValueError(
            f"{index}: no scene in split {split!r}; there are {', '.join(sorted(map(str, splits))) or 'none'}"
        )
    return scenes


def check_inside(index: Path, number: int, names: Iterable[str]) -> None:
    """Names come from outside: none may lead out of the scene's folder.

    Raises:
        ValueError: an absolute path, or one with "..".
    """
    for name in names:
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{index}:{number}: expected names inside {index.parent}, got {name!r}")
