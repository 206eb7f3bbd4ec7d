"""The degradations of design §5 as users of BasicSR and Real-ESRGAN run them on a CPU: NumPy and OpenCV, one photo at a
time, in a pool of worker processes. What `finpercep.data.degradations.apply` is measured against.

It takes the parameters that `draw_parameters` drew, so both do the same work; only the noise values differ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from finpercep.data.degradations.blur_kernels import KINDS, KernelParameters
from finpercep.data.degradations.draw import Order, Parameters
from finpercep.data.degradations.ragged import MODES

Array = NDArray[np.float32]
RESIZE = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


class Kernel(NamedTuple):
    """`KernelParameters` of one sample, in plain numbers."""

    kind: str
    size: int
    sigma_x: float
    sigma_y: float
    rotation: float
    beta: float
    omega: float


class Step(NamedTuple):
    """`Order` of one sample, in plain numbers."""

    kernel: Kernel
    size: tuple[int, int]
    mode: str
    gaussian: bool
    strength: float
    grey: bool
    quality: float


class Sample(NamedTuple):
    """`Parameters` of one sample, in plain numbers, with the size of the result."""

    first: Step
    second: Step
    sinc: Kernel
    sinc_before_jpeg: bool
    mode: str
    final: tuple[int, int]
    seed: int


def plain(drawn: Parameters, final: tuple[int, int]) -> list[Sample]:
    """What was drawn for a batch, sample by sample."""

    def kernel(of: KernelParameters, i: int) -> Kernel:
        return Kernel(KINDS[int(of.kind[i])], int(of.size[i]), *(float(value[i]) for value in of[2:]))

    def step(of: Order, i: int) -> Step:
        size = int(of.height[i]), int(of.width[i])
        noise = bool(of.gaussian[i]), float(of.strength[i]), bool(of.grey[i])
        return Step(kernel(of.kernel, i), size, MODES[int(of.mode[i])], *noise, float(of.quality[i]))

    return [
        Sample(
            step(drawn.first, i),
            step(drawn.second, i),
            kernel(drawn.sinc, i),
            bool(drawn.sinc_before_jpeg[i]),
            MODES[int(drawn.mode[i])],
            final,
            i,
        )
        for i in range(len(drawn.mode))
    ]


def degrade_one(photo: Array, drawn: Sample, *, noisy: bool = True) -> Array:
    """The low-resolution version (h,w,3) of one photo (H,W,3), RGB, both in [0, 1]."""
    random = np.random.default_rng(drawn.seed)
    image = photo
    for number, step in enumerate((drawn.first, drawn.second)):
        image = blur(image, step.kernel)
        image = resize(image, step.size, step.mode)
        if noisy:
            image = add_noise(image, step, random)
        image = image.clip(0, 1)
        if number == 0:
            image = jpeg(image, step.quality)
    if not drawn.sinc_before_jpeg:
        image = jpeg(image, drawn.second.quality)
    image = blur(resize(image, drawn.final, drawn.mode), drawn.sinc).clip(0, 1)
    if drawn.sinc_before_jpeg:
        image = jpeg(image, drawn.second.quality)
    return ((image * 255).round() / 255).astype(np.float32)


def blur(image: Array, drawn: Kernel) -> Array:
    if drawn.kind == "none":
        return image
    return cv2.filter2D(image, -1, kernel_of(drawn), borderType=cv2.BORDER_REFLECT_101)


def kernel_of(drawn: Kernel) -> Array:
    """The kernel (size,size) by the formulas of BasicSR's `degradations.py`."""
    from scipy.special import j1

    axis = np.arange(drawn.size) - drawn.size // 2
    x, y = np.meshgrid(axis, axis)
    if drawn.kind == "sinc":
        radius = np.hypot(x, y)
        radius[drawn.size // 2, drawn.size // 2] = 1
        kernel = drawn.omega * j1(drawn.omega * radius) / (2 * np.pi * radius)
        kernel[drawn.size // 2, drawn.size // 2] = drawn.omega**2 / (4 * np.pi)
        return (kernel / kernel.sum()).astype(np.float32)
    sigma_y = drawn.sigma_x if drawn.kind.endswith("_iso") or drawn.kind == "iso" else drawn.sigma_y
    cos, sin = math.cos(drawn.rotation), math.sin(drawn.rotation)
    turn = np.array([[cos, -sin], [sin, cos]])
    inverse = np.linalg.inv(turn @ np.diag([drawn.sigma_x**2, sigma_y**2]) @ turn.T)
    grid = np.stack([x, y], -1)
    q = np.sum((grid @ inverse) * grid, 2)
    power = q if drawn.kind in ("iso", "aniso") else q**drawn.beta
    kernel = 1 / (1 + power) if drawn.kind.startswith("plateau") else np.exp(-0.5 * power)
    return (kernel / kernel.sum()).astype(np.float32)


def resize(image: Array, size: tuple[int, int], mode: str) -> Array:
    return cv2.resize(image, size[::-1], interpolation=RESIZE[mode])


def add_noise(image: Array, step: Step, random: np.random.Generator) -> Array:
    """Gaussian or Poisson noise as BasicSR's `generate_gaussian_noise` and `generate_poisson_noise`."""
    if step.gaussian:
        shape = image.shape[:2] if step.grey else image.shape
        noise = random.standard_normal(shape, dtype=np.float32) * np.float32(step.strength / 255)
        return image + (noise[..., None] if step.grey else noise)
    clean = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if step.grey else image
    clean = (clean.clip(0, 1) * 255).round() / 255
    levels = 2 ** np.ceil(np.log2(len(np.unique(clean))))
    noise = (random.poisson(clean * levels) / levels).astype(np.float32) - clean
    return image + noise * np.float32(step.strength)


def jpeg(image: Array, quality: float) -> Array:
    """Through the real encoder and decoder."""
    levels = (image * 255).round().astype(np.uint8)
    _, data = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    decoded: Any = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return decoded[..., ::-1].astype(np.float32) / 255


_photos: Array = np.empty((0, 0, 0, 3), np.float32)


def _start(path: str) -> None:
    global _photos
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _photos = np.load(path)


def _degrade_mine(number: int, drawn: Sample) -> Array:
    return degrade_one(_photos[number], drawn)


class Pool:
    """Worker processes, one per core, that hold the photos already: reading and sending them costs this route nothing.

    Args:
        path: the photos, .npy, (B,H,W,3) fp32.
    """

    def __init__(self, path: str | os.PathLike[str], workers: int) -> None:
        self.pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (str(path),))

    def degrade(self, drawn: Sequence[Sample]) -> list[Any]:
        """The low-resolution version of every photo."""
        return list(self.pool.map(_degrade_mine, range(len(drawn)), drawn))

    def close(self) -> None:
        self.pool.shutdown()
