"""Sets with latents and embeddings of texts that were computed beforehand, as DiT4SR's training has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.image_ops import to_uint8
from finpercep.io.images import image_sides, load_image
from finpercep.io.reasons import one_line
from finpercep.rl.batch import LATENT, TEXTS
from finpercep.rl.pair import Images, Pair


def is_precomputed(folder: Path) -> bool:
    """Whether a folder is such a set."""
    return (folder / LATENT).is_dir()


def of_precomputed(root: Path, scale: int) -> Iterator[Pair]:
    """The enlarged low-resolution images of sr_bicubic/, made small again, and what belongs to them.

    latent_lr/, prompt_embeds/ and pooled_prompt_embeds/ have a .pt file for each image, by its name; an image without
    embeddings has those of the empty text. gt/ has the photos that are known.

    Raises:
        FileNotFoundError: an image without embeddings, where others have some and those of the empty text are missing.
    """
    paths = sorted((root / LATENT).glob("*.pt"))
    texts = [name for name in TEXTS if any((root / name / path.name).is_file() for path in paths)]
    for path in paths:
        enlarged, photo = root / "sr_bicubic" / f"{path.stem}.png", root / "gt" / f"{path.stem}.png"

        def read(enlarged: Path = enlarged, photo: Path = photo) -> Images:
            large = load_image(enlarged)
            low = F.interpolate(large[None].float() / 255, scale_factor=1 / scale, mode="bicubic", antialias=True)
            return to_uint8(low[0].clamp(0, 1)), load_image(photo) if photo.is_file() else None

        known = {LATENT: path, **{name: _embedding(root, name, path.name) for name in texts}}
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
    for root in (Path(root).expanduser() for root in roots):
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
