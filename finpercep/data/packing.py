"""Training sets as one small folder, for a machine to which little can be carried: AVIF at the quality that fits."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finpercep.data.loading import check_inside
from finpercep.data.scenes import spread
from finpercep.io.files import UNFINISHED, atomic_write, read_text, write_json
from finpercep.io.images import image_sides, load_image
from finpercep.runs.lock import LOCK, folder_lock

__all__ = ["Packed", "pack"]

INDEX, STATE = "index.jsonl", "pack.json"
QUALITIES = range(30, 96)
"""Of AVIF, 4:4:4. Below, the fine texture that tells a photo from a result is gone; above, files grow for nothing."""
SPEED = 8
SAMPLE = 32
"""Images that qualities are tried on."""
MARGIN = 0.97
"""Of the limit, what the sample may come to: other images are a little larger or smaller."""


@dataclass(frozen=True)
class Packed:
    """What became of the sets.

    Attributes:
        quality: of AVIF.
        psnr: mean over a sample of images, in dB, against the originals; infinite where nothing changed.
        images, scenes: how many.
        size: of all files, in bytes.
    """

    quality: int
    psnr: float
    images: int
    scenes: int
    size: int


@dataclass(frozen=True)
class _Row:
    """A line of the new index, and its images: where each is from and where it goes to."""

    line: dict[str, Any]
    images: list[tuple[Path, Path]]


def pack(
    folders: Sequence[str | Path],
    out: str | Path,
    limit: int,
    *,
    splits: Sequence[str] = ("train",),
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the scenes of several folders into one of at most `limit` bytes, which `load_scenes` reads.

    Photos and results become AVIF without subsampling of colors, all at one quality: the best that fits, found on a
    sample. Low-resolution versions are left out; every other field of the index stays, and scenes get the name of their
    folder before theirs. The same input gives the same bytes. A stopped call goes on when it is made again; the
    index comes last, so that no half-made folder can be trained on.

    Args:
        folders: with an `index.jsonl` each, of different names.
        out: a folder that is not there, empty, or begun by this function with the same arguments.
        limit: in bytes, of all files together.
        splits: which to take.
        progress: is told how many images of how many are written.

    Raises:
        ValueError: no scenes, folders of one name, another folder's contents in `out`, or a limit that is too small:
            names the least size.
        FileNotFoundError: a folder without index.
        FolderInUseError: another process packs into `out`.
        ImportError: a Pillow without AVIF.
    """
    _require_avif()
    out = Path(out)
    rows = _read(folders, out, splits)
    files = [image for row in rows for image in row.images]
    sample = _Sample([path for path, _ in spread(files, SAMPLE)])
    state = {"fingerprint": _fingerprint(rows), "limit": limit, "splits": list(splits)}
    with folder_lock(out):
        quality = _begun(out, state)
        if quality is None:
            quality = _search(sample, files, limit)
            write_json(out / STATE, {**state, "quality": quality})
        while (size := _write(files, rows, out, quality, progress)) > limit:
            quality = _lower(quality, size, limit, len(files))
            _clear(out)
            write_json(out / STATE, {**state, "quality": quality})
        with atomic_write(out / INDEX) as file:
            file.write(_index(rows, quality))
    return Packed(quality, sample.psnr(dict(files)), len(files), len(rows), _size(out))


class _Sample:
    """Some images in memory, and what they come to at a quality."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.images = {path: load_image(path) for path in paths}
        self.pixels = sum(image[0].numel() for image in self.images.values())

    def bytes_per_pixel(self, quality: int) -> float:
        return sum(len(_encode(image, quality)) for image in self.images.values()) / self.pixels

    def psnr(self, packed: dict[Path, Path]) -> float:
        """Mean over the images, of their packed files."""
        found = []
        for path, image in self.images.items():
            error = (load_image(packed[path]).double() - image).square().mean().item()
            found.append(10 * math.log10(255**2 / error) if error else math.inf)
        return sum(found) / len(found)


def _require_avif() -> None:
    from PIL import features

    if not features.check("avif"):
        raise ImportError('packing needs Pillow with AVIF: pip install "pillow>=11.3"')


def _read(folders: Sequence[str | Path], out: Path, splits: Sequence[str]) -> list[_Row]:
    names = [Path(folder).resolve().name for folder in folders]
    if len({*names}) < len(names):
        raise ValueError(f"data: expected folders of different names, got {', '.join(names)}")
    rows = [row for folder, name in zip(folders, names, strict=True) for row in _rows(Path(folder), name, out, splits)]
    if not rows:
        raise ValueError(f"data: expected scenes of the split {' or '.join(splits)}, got none")
    return rows


def _rows(folder: Path, name: str, out: Path, splits: Sequence[str]) -> list[_Row]:
    index = folder / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{index}: not found; expected a folder with index.jsonl")
    rows = []
    for number, text in enumerate(read_text(index).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            if row["split"] not in splits:
                continue
            check_inside(index, number, [row["split"], row["id"], row["gt"], *row["sr"].values()])
            before, after = folder / row["split"] / row["id"], out / row["split"] / name / row["id"]
            given = [row["gt"], *row["sr"].values()]
            new = {file: str(Path(file).with_suffix(".avif")) for file in given}
            line = {key: value for key, value in row.items() if key != "lr"}
            line |= {"id": f"{name}/{row['id']}", "gt": new[row["gt"]]}
            line["sr"] = {source: new[file] for source, file in row["sr"].items()}
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}:{number}: expected a scene (split, id, gt, sr), got {error!r}") from error
        if len({*new.values()}) < len(new):
            raise ValueError(f"{index}:{number}: expected files that differ by more than their suffix, got {[*new]}")
        rows.append(_Row(line, [(before / file, after / name) for file, name in new.items()]))
    return rows


def _fingerprint(rows: Sequence[_Row]) -> str:
    """Of names and sizes of the files; none is read."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.line, [path.stat().st_size for path, _ in row.images]]).encode())
    return digest.hexdigest()[:16]


def _begun(out: Path, state: dict[str, Any]) -> int | None:
    """The quality that a stopped call had come to; None of a folder that holds nothing."""
    path = out / STATE
    if not path.is_file():
        if out.exists() and not all(found.match(UNFINISHED) or found.name == LOCK for found in out.iterdir()):
            raise ValueError(f"{out}: expected an empty folder or one that was packed before, got other files in it")
        return None
    try:
        found = json.loads(path.read_text())
        quality = int(found["quality"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected the state of a packing, got {error!r}") from error
    changed = [name for name in state if found.get(name) != state[name]]
    if changed:
        got = f"{', '.join(f'{name} {found.get(name)} (now {state[name]})' for name in changed)}"
        raise ValueError(f"{path}: expected to be made from the same sets with the same limit, got {got}")
    return quality


def _search(sample: _Sample, files: Sequence[tuple[Path, Path]], limit: int) -> int:
    """The best quality at which all files should fit."""
    pixels = sum(math.prod(image_sides(path)) for path, _ in files)
    least = round(sample.bytes_per_pixel(QUALITIES[0]) * pixels / MARGIN)
    if least > limit:
        raise ValueError(_too_small(least, limit, len(files)))
    low, high = 0, len(QUALITIES) - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = sample.bytes_per_pixel(QUALITIES[middle]) * pixels <= MARGIN * limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return QUALITIES[low]


def _lower(quality: int, size: int, limit: int, images: int) -> int:
    """The next quality to try."""
    if quality == QUALITIES[0]:
        raise ValueError(_too_small(size, limit, images))
    return max(QUALITIES[0], quality - 2)


def _too_small(least: int, limit: int, images: int) -> str:
    wanted, given = (f"{math.ceil(size / 1e5) / 10} MB" if size > 1e5 else f"{size} bytes" for size in (least, limit))
    return f"limit: expected at least {wanted} for {images} images at quality {QUALITIES[0]}, got {given}"


def _write(
    files: Sequence[tuple[Path, Path]],
    rows: Sequence[_Row],
    out: Path,
    quality: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Encode what is not there yet; returns what the folder comes to with its index."""
    for half in out.rglob(UNFINISHED):
        half.unlink(missing_ok=True)
    for number, (source, target) in enumerate(files, 1):
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as file:
                file.write(_encode(load_image(source), quality))
        if progress is not None:
            progress(number, len(files))
    written = sum(target.stat().st_size for _, target in files)
    return written + len(_index(rows, quality)) + (out / STATE).stat().st_size


def _index(rows: Sequence[_Row], quality: int) -> bytes:
    lines = [json.dumps({**row.line, "packed": f"AVIF 4:4:4, quality {quality}"}) for row in rows]
    return ("\n".join(lines) + "\n").encode()


def _encode(image: torch.Tensor, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    # One thread: the bytes shall not depend on the machine's number of them.
    picture.save(buffer, "AVIF", quality=quality, subsampling="4:4:4", speed=SPEED, max_threads=1)
    return buffer.getvalue()


def _clear(out: Path) -> None:
    for folder in out.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)


def _size(out: Path) -> int:
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
