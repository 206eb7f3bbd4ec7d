"""Photos and low-resolution images of six kinds of sets, read when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.dataset.stored import StoredScene, is_stored, stored_scenes
from finpercep.data.degradations.apply import degrade
from finpercep.data.image_ops import to_uint8
from finpercep.data.loading import check_inside
from finpercep.data.randomness import seed_of
from finpercep.data.scenes import photo_of
from finpercep.io.files import read_text
from finpercep.io.images import expand_paths, image_sides, load_image
from finpercep.io.reasons import one_line
from finpercep.rl.batch import check_pair

MEMORY = 2**31
"""Images stay in memory where all of them together are no larger, in bytes."""
CHOICES = "pairs.jsonl"
ALONE = ("photos", "lr")
TEXTS = ("prompt_embeds", "pooled_prompt_embeds")
VAL = 10
"""Of folders of photos without splits, one photo in so many is held out, by its name."""

Images = tuple[Tensor, Tensor | None]


@dataclass
class Pair:
    """A low-resolution image, uint8 (3,h,w), and the photo (3,H,W) where it is known.

    Attributes:
        name: for messages.
        sides: (H, W) of the photo, or of what a generator will make.
        read: low-resolution image and photo.
        has_photo: whether there is a photo.
        extras: what belongs to the image besides, see `Batch`; "latent_lr" binds it to the whole image.
        results: name -> results (3,H,W), uint8, of the low-resolution image as it is: "chosen" and "rejected".
        keep: the images stay in memory.
        of: what pairs of one photo share: other crops of it, other labels; the name where that is all.
        files: what it is read from, and `place` which part of them, as JSON-able values; `root` is the set's folder.
    """

    name: str
    sides: tuple[int, int]
    read: Callable[[], Images] = field(repr=False)
    has_photo: bool = True
    extras: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict, repr=False)
    results: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict, repr=False)
    keep: bool = True
    of: str = ""
    files: Sequence[Path] = ()
    place: Sequence[Any] = ()
    root: Path = Path()
    _images: Images | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.of = self.of or self.name

    @property
    def fixed(self) -> bool:
        """Latents are given: the image is used whole, as it is."""
        return "latent_lr" in self.extras

    @property
    def lr(self) -> Tensor:
        """The low-resolution image."""
        return self.images()[0]

    @property
    def photo(self) -> Tensor | None:
        """The photo; None where there is none."""
        return self.images()[1]

    def images(self) -> Images:
        """Low-resolution image and photo; where there is no room for all, each call reads their files."""
        found = self._images or self.read()
        self._images = found if self.keep else None
        return found


def load_pairs(roots: Sequence[str | Path], split: str, scale: int, *, apart: Path | None = None) -> list[Pair]:
    """The images of sets, in one list.

    - a folder with an `index.jsonl` whose lines have split, id, gt and, if they are known, lr: `<root>/<split>/<id>/`;
    - a data set that `make_dataset` made;
    - a folder with a `pairs.jsonl` whose lines have lr, chosen and rejected, files in the folder, and gt where it is
      known; those with split "val" need lr and gt;
    - a folder as DiT4SR's training has it: sr_bicubic, prompt_embeds, pooled_prompt_embeds, latent_lr, and gt where it
      is known; all of it is `train`;
    - ``photos:DIR``: photos, of which one in `VAL` is `val`, by its name;
    - ``lr:DIR``: low-resolution images without photos, all of them `train`.

    Photos without a low-resolution version get one by `degrade`, seeded by their name.

    Args:
        roots: the sets.
        split: "train" or "val".
        scale: how many times larger a photo is than its low-resolution image.
        apart: a folder whose images are none of them: of a run that writes beneath its photos.

    Raises:
        FileNotFoundError: no such folder, or none of these kinds.
        ValueError: a line without one of the names, a pair that does not match, or nothing in that split.
    """
    pairs = []
    own = None if apart is None else apart.resolve()
    for root in map(str, roots):
        kind, colon, rest = root.partition(":")
        for pair in _pairs(root, split, scale):
            if own is not None and own in Path(pair.files[0]).resolve().parents:
                continue
            pair.root = Path(rest if colon and kind in ALONE else root).expanduser()
            pairs.append(pair)
    if not pairs:
        instead = "; --set dev_every=5 holds out every fifth photo of `train` instead" if split == "val" else ""
        raise ValueError(f"{', '.join(map(str, roots))}: expected photos in split {split!r}, found none{instead}")
    if sum(3 * height * width for height, width in (pair.sides for pair in pairs)) > MEMORY:
        for pair in pairs:
            pair.keep = False
    return pairs


def _pairs(root: str, split: str, scale: int) -> Iterator[Pair]:
    kind, colon, rest = root.partition(":")
    if colon and kind in ALONE:
        return _folder(kind, rest, split, scale)
    folder = Path(root).expanduser()
    if is_stored(folder):
        return (_of_scene(scene, scale) for scene in stored_scenes(folder, split, may_be_empty=True))
    if (folder / CHOICES).is_file():
        return _of_choices(folder, split, scale)
    if (folder / "latent_lr").is_dir():
        return _with_latents(folder, scale) if split == "train" else iter(())
    if not (folder / "index.jsonl").is_file():
        raise FileNotFoundError(
            f"{folder / 'index.jsonl'}: not found; expected a folder with index.jsonl, one with pairs.jsonl, a data "
            "set that make-dataset made, photos:DIR or lr:DIR"
        )
    return _of_index(folder, split, scale)


def _of_index(root: Path, split: str, scale: int) -> Iterator[Pair]:
    index = root / "index.jsonl"
    for number, row in _rows(index):
        if missing := {"split", "id", "gt"} - row.keys():
            raise ValueError(f"{index}:{number}: expected split, id and gt, got none of {sorted(missing)}")
        check_inside(index, number, [str(row[name]) for name in ("id", "gt", "lr") if row.get(name)])
        if row["split"] == split:
            folder = root / split / str(row["id"])
            yield _of_files(folder / str(row["gt"]), folder / str(row["lr"]) if row.get("lr") else None, scale)


def _rows(index: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and contents of each line."""
    for number, line in enumerate(read_text(index).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row.keys()
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{index}:{number}: expected a scene, got {one_line(error)}") from error
        yield number, row


def _of_choices(root: Path, split: str, scale: int) -> Iterator[Pair]:
    """Labelled results: of two of one low-resolution image, which was chosen."""
    index = root / CHOICES
    rows = list(_rows(index))
    photos = {str(row["lr"]): str(row["gt"]) for _, row in rows if row.get("lr") and row.get("gt")}
    for number, row in rows:
        if (part := row.get("split", "train")) != split:
            continue
        names = ("lr", "gt") if part == "val" else ("lr", "chosen", "rejected")
        if missing := [name for name in names if not row.get(name)]:
            raise ValueError(f"{index}:{number}: expected {', '.join(names)}, got no {', '.join(missing)}")
        files = {name: str(row[name]) for name in ("lr", "gt", "chosen", "rejected") if row.get(name)}
        check_inside(index, number, list(files.values()))
        paths = {name: root / file for name, file in files.items()}
        if split == "val":
            yield _of_files(paths["gt"], paths["lr"], scale)
            continue
        yield _of_choice(paths, scale, root / photos.get(files["lr"], files["lr"]))


def _of_choice(paths: dict[str, Path], scale: int, of: Path) -> Pair:
    low, large = (torch.empty(3, *image_sides(path), device="meta") for path in (paths["lr"], paths["chosen"]))
    for name in paths.keys() - {"lr"}:
        _check_scale(low, torch.empty(3, *image_sides(paths[name]), device="meta"), scale, f"{paths['lr']}, {name}")
    results = {name: partial(load_image, paths[name]) for name in ("chosen", "rejected")}

    def read() -> Images:
        return load_image(paths["lr"]), load_image(paths["gt"]) if "gt" in paths else None

    height, width = large.shape[1:]
    files = list(paths.values())
    return Pair(str(paths["lr"]), (height, width), read, "gt" in paths, results=results, of=str(of), files=files)


def _folder(kind: str, folder: str, split: str, scale: int) -> Iterator[Pair]:
    if not Path(folder).expanduser().is_dir():
        raise FileNotFoundError(f"{kind}:{folder}: expected a folder of images, found none")
    paths = expand_paths([folder])
    if kind == "lr":
        for path in paths if split == "train" else ():
            height, width = image_sides(path)
            yield Pair(str(path), (height * scale, width * scale), partial(_alone, path), False, files=[path])
        return
    for path in paths:
        if (seed_of(0, path.stem) % VAL == 0) == (split == "val"):
            yield _of_files(path, None, scale)


def _alone(lr: Path) -> Images:
    return load_image(lr), None


def _of_files(photo: Path, lr: Path | None, scale: int) -> Pair:
    """A photo with its low-resolution version, or with one that is made."""
    height, width = image_sides(photo)
    if lr is None:
        sides = height // scale * scale, width // scale * scale
        return Pair(str(photo), sides, lambda: _made(load_image(photo), photo.stem, scale), files=[photo])
    names = f"{lr}, {photo.name}"
    low, large = (torch.empty(3, *size, device="meta") for size in (image_sides(lr), (height, width)))
    _check_scale(low, large, scale, names)

    def read() -> Images:
        return load_image(lr), load_image(photo)

    return Pair(names, (height, width), read, of=str(photo), files=[lr, photo])


def _made(photo: Tensor, name: str, scale: int) -> Images:
    height, width = (side // scale * scale for side in photo.shape[1:])
    photo = photo[:, :height, :width]
    lr = degrade(photo[None].float() / 255, [seed_of(0, "lr", name)], scale=scale)[0]
    return to_uint8(lr[0]), photo


def _check_scale(lr: Tensor, photo: Tensor, scale: int, names: str) -> None:
    """`names` are of the low-resolution image, a comma, and the photo."""
    found = check_pair(lr, photo, names=names)
    if found != scale:
        raise ValueError(f"{names.partition(',')[0]}: expected a photo {scale} times larger, got {found} times")


def _of_scene(scene: StoredScene, scale: int) -> Pair:
    """A scene of a data set; its own low-resolution version where it was stored, else one that is made."""
    name = f"{scene.gt_path}: {scene.id}"
    height, width = scene.sides

    def read() -> Images:
        gt, lr = scene.gt, scene.lr
        if lr is None:
            return _made(gt, scene.id, scale)
        _check_scale(lr, gt, scale, name)
        return lr, gt

    sides = height // scale * scale, width // scale * scale
    of, place = f"{scene.gt_path}: {photo_of(scene.id)}", [scene.id, *scene.place()]
    return Pair(name, sides, read, of=of, files=[scene.gt_path], place=place)


def _with_latents(root: Path, scale: int) -> Iterator[Pair]:
    """Images with what DiT4SR's training computes beforehand: latents and embeddings as .pt files of their names.

    An image without embeddings has those of the empty text.
    """
    paths = sorted((root / "latent_lr").glob("*.pt"))
    texts = [name for name in TEXTS if any((root / name / path.name).is_file() for path in paths)]
    for path in paths:
        enlarged, photo = root / "sr_bicubic" / f"{path.stem}.png", root / "gt" / f"{path.stem}.png"

        def read(enlarged: Path = enlarged, photo: Path = photo) -> Images:
            large = load_image(enlarged)
            low = F.interpolate(large[None].float() / 255, scale_factor=1 / scale, mode="bicubic", antialias=True)
            return to_uint8(low[0].clamp(0, 1)), load_image(photo) if photo.is_file() else None

        known = {"latent_lr": path, **{name: _embedding(root, name, path.name) for name in texts}}
        extras = {name: partial(_tensor, file) for name, file in known.items()}
        files = [enlarged, *([photo] if photo.is_file() else []), *known.values()]
        yield Pair(str(enlarged), image_sides(enlarged), read, photo.is_file(), extras, files=files)


def _embedding(root: Path, name: str, file: str) -> Path:
    own, empty = root / name / file, root / name / f"NULL_{name}.pt"
    if not own.is_file() and not empty.is_file():
        raise FileNotFoundError(f"{own}: expected an embedding, as other images have one, or {empty.name}, got neither")
    return own if own.is_file() else empty


def empty_texts(roots: Sequence[str | Path]) -> dict[str, Tensor]:
    """Embeddings of the empty text, name -> (1, ...), of the first folder that has them as DiT4SR's training does."""
    for root in map(Path, roots):
        files = {name: root / name / f"NULL_{name}.pt" for name in TEXTS}
        if all(file.is_file() for file in files.values()):
            return {name: _tensor(file)[None] for name, file in files.items()}
    return {}


def _tensor(path: Path) -> Tensor:
    """A tensor of a .pt file without its first dimension of 1; no code in it is run."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return found.squeeze(0).float()
    except Exception as error:  # pickles fail in many ways
        raise ValueError(f"{path}: expected a tensor, got {one_line(error)}") from error
