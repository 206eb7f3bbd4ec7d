"""Where super-resolved images come from, by name: results made elsewhere, models, and faults without weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from finpercep.data.kinds import Kind, split_kind
from finpercep.data.sources.protocol import Source, SourceInput

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SOURCE_KINDS", "SourceKind", "SourceSpec", "open_source", "parse_source", "parse_sources"]

_SOURCES = "finpercep.data.sources"


@dataclass(frozen=True)
class SourceKind(Kind):
    """One line of `SOURCE_KINDS`.

    Attributes:
        unnamed: what a source is called without ``NAME=``: its "value", the "stem" of the file, or "" where the name
            must be given.
        by_content: the value names files or weights, whose contents the fingerprint holds, wherever they lie. The
            value of any other kind becomes part of the fingerprint.
    """

    unnamed: Literal["value", "stem", ""] = "value"
    by_content: bool = False


SOURCE_KINDS = {
    "folder": SourceKind(
        "folder:NAME=DIR", f"{_SOURCES}.folder:FolderSource", ("name", "scale"),
        help="a folder or a pattern", unnamed="", by_content=True,
    ),
    "spandrel": SourceKind(
        "spandrel:FILE", f"{_SOURCES}.spandrel_model:SpandrelSource", ("name", "scale", "device", "tile"),
        help="a checkpoint", unnamed="stem", by_content=True,
    ),
    "ncnn": SourceKind(
        "ncnn:NAME_OR_PARAM", f"{_SOURCES}.ncnn_model:NcnnSource", ("name", "scale", "tile"),
        help="a model in ncnn's format", unnamed="stem", by_content=True,
    ),
    "diffusers": SourceKind(
        "diffusers:ID", f"{_SOURCES}.diffusers_pipeline:DiffusersSource", ("name", "scale", "device", "tile", "steps"),
        help="an upscaling pipeline", by_content=True,
    ),
    "autoencoder": SourceKind(
        "autoencoder:ID", f"{_SOURCES}.autoencoder:AutoencoderSource", ("name", "scale", "device", "tile"),
        help="a diffusion model's autoencoder, with noise in the latent", by_content=True,
    ),
    "builtin": SourceKind(
        "builtin:NAME", f"{_SOURCES}.builtin:builtin_source",
        values=f"{_SOURCES}.builtin:BUILTIN",
        help="faults without weights: bicubic, blocky, checkerboard, compressed, grain, oversharp, painterly, "
        "patterned, quilted, reinvented, smooth, wobbly; all is each of them",
    ),
}  # fmt: skip


class SourceSpec(NamedTuple):
    """``KIND:[NAME=]VALUE`` taken apart; `value` is a folder, pattern, file, hub id or built-in name."""

    kind: str
    name: str
    value: str


def parse_source(text: str) -> list[SourceSpec]:
    """The sources that one ``--sr`` names.

    - ``folder:NAME=DIR`` (or a pattern): results made elsewhere, matched by name (`pairs.find_images`);
    - ``spandrel:[NAME=]FILE``: a checkpoint of any architecture that spandrel knows;
    - ``ncnn:[NAME=]NAME_OR_PARAM``: a .param with its .bin beside it, or one of `ncnn_model.packaged_models`;
    - ``diffusers:[NAME=]ID``: an upscaling pipeline, a folder or a hub id;
    - ``autoencoder:[NAME=]ID``: the autoencoder of a latent diffusion model, a folder or a hub id;
    - ``builtin:NAME``: ``bicubic`` or one of `SYNTHETIC_SOURCES`; ``builtin:all`` is each of them.

    Raises:
        ValueError: another kind, an unknown built-in, or a folder without a name.
    """
    kind, value = split_kind(SOURCE_KINDS, text, "sr: expected")
    usage, known = SOURCE_KINDS[kind].usage, SOURCE_KINDS[kind].known_values()
    if known:
        if value not in (*known, "all"):
            raise ValueError(f"sr: expected {usage} with one of {', '.join(known)} or all, got {text!r}")
        return [SourceSpec(kind, name, name) for name in (known if value == "all" else [value])]
    match = re.match(r"([\w.+-]+)=(.+)", value)
    if match:
        return [SourceSpec(kind, match[1], match[2])]
    if not SOURCE_KINDS[kind].unnamed:
        raise ValueError(f"sr: expected {usage}, got {text!r}")
    shown = Path(value).stem if SOURCE_KINDS[kind].unnamed == "stem" else value
    return [SourceSpec(kind, re.sub(r"[^\w.+-]", "_", shown), value)]


def parse_sources(texts: Sequence[str]) -> list[SourceSpec]:
    """All ``--sr`` in order.

    Raises:
        ValueError: none, or two with one name.
    """
    specs = [spec for text in texts for spec in parse_source(text)]
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not specs or twice:
        raise ValueError(f"sr: expected sources with different names, got {twice or 'none'}")
    return specs


def open_source(spec: SourceSpec, **options: Any) -> Source:
    """Load what a source needs.

    Args:
        spec: see `parse_source`.
        options: those of `MakeConfig` and `make_dataset` that the kind takes: `scale`, the enlargement that models
            must have; `tile`, the side of the tiles that models see, in low-resolution pixels (0 gives them whole
            images); `steps` of diffusers pipelines; `device`.
    """
    kind = SOURCE_KINDS[spec.kind]
    source: Source = kind.open(spec.value, name=spec.name, **options)
    if kind.by_content or spec.value == spec.name:  # the name is in the settings beside the fingerprint
        return source
    return _WithValue(source, f"{source.fingerprint}-{spec.value}")


@dataclass(frozen=True)
class _WithValue:
    """A source whose fingerprint holds the value that it was opened with."""

    source: Source
    fingerprint: str

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def needs_lr(self) -> bool:
        return self.source.needs_lr

    def __call__(self, given: SourceInput) -> Tensor:
        return self.source(given)
