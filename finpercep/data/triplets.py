"""Training triplets (I_GT, I_syn, I_SR) with their fault targets, each a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from finpercep.data.features.kinds import check_features, open_features
from finpercep.data.image_ops import gaussian_blur, jpeg, resize
from finpercep.data.masks.simple import random_blobs, random_boxes
from finpercep.data.randomness import chance, choose, integer, stream, uniform32
from finpercep.data.scenes import Scene, StoredSample
from finpercep.data.sources.quilting import quilted
from finpercep.data.sources.synthetic import SYNTHETIC_SOURCES, synthetic_source
from finpercep.data.swap import region_swap
from finpercep.data.targets import ALPHA, SCALE, fault_target

__all__ = ["Triplet", "TripletConfig", "Triplets", "stored_triplet"]


class Triplet(NamedTuple):
    """`gt`, `syn`, `sr` (3,H,W) in [0, 1]; `target_syn`, `target_sr` (1,H,W): their M_gt against `gt`; `aligned` (),
    bool: see `Scene`."""

    gt: Tensor
    syn: Tensor
    sr: Tensor
    target_syn: Tensor
    target_sr: Tensor
    aligned: Tensor


def _share(help: str) -> Any:
    """A share of triplets, none by default, that `finpercep train-reward` has an option for."""
    return field(default=0.0, metadata={"help": help, "min": 0})


@dataclass(frozen=True)
class TripletConfig:
    """How triplets are drawn. Shares are probabilities.

    Attributes:
        crop: side of the square crops, pixels.
        quilted: share of triplets whose `sr` is the photo with its detail in the wrong places (`sources.quilting`), the
            nearest to what diffusion models invent that can be had without one.
        synthetic: of the others, share of triplets whose `sr` is a synthetic source instead of a real model's result.
        camera: share whose photo is first made soft and grainy all over, as cameras take them, by a sigma and a grain
            uniform in `camera_blur` (pixels) and `camera_grain` (of 255). A real model's result then gets the same.
        noisy: share whose `sr` alone gets grain, of `grain_range`: grain shall not make a result look like a photo.
        resized: share of triplets that are shrunk or enlarged, by a factor uniform in `resize_range`.
        compressed: share that go through JPEG, all three images at one quality uniform in `jpeg_range` (its end left
            out). Compression, size and softness of the whole photo are not the fault that the map looks for.
        softened: share whose three images are blurred alike, by a sigma uniform in `soften_range` (pixels): a photo may
            be soft all over.
        defocused: share whose photo and super-resolved version are first blurred alike in part, with a smooth edge and
            a sigma uniform in `defocus_range` (pixels): a photo may be out of focus in places, which is no fault.
        grainy: share whose three images get the same grain, of a strength uniform in `grain_range` (of 255).
        dimmed: share whose three images are darkened alike, to a brightness uniform in `dim_range`: night photos.
        gray: share of triplets without color.
        feathered: share of masks whose edge is blurred.
        features: what M_gt compares beside pixels, see `features.kinds.open_features`.
        target_alpha, target_scale: of M_gt: the weight of the pixels, and the difference that counts as fully degraded,
            which is another one for other features.
    """

    crop: int = field(default=192, metadata={"help": "Side of the square crops, in pixels.", "min": 16})
    quilted: float = _share("Share of triplets whose fault is the photo's own detail in the wrong places.")
    synthetic: float = 0.35
    camera: float = _share("Share of triplets whose photo is made soft and grainy all over first.")
    camera_blur: tuple[float, float] = (0.6, 2.0)
    camera_grain: tuple[float, float] = (0.3, 5.0)
    noisy: float = _share("Share of triplets whose super-resolved version alone gets grain.")
    resized: float = 0.6
    resize_range: tuple[float, float] = (0.55, 1.25)
    compressed: float = 0.4
    jpeg_range: tuple[int, int] = (65, 95)
    softened: float = 0.25
    soften_range: tuple[float, float] = (0.3, 1.0)
    defocused: float = 0.2
    defocus_range: tuple[float, float] = (0.5, 3.0)
    grainy: float = 0.2
    grain_range: tuple[float, float] = (1.0, 8.0)
    dimmed: float = 0.1
    dim_range: tuple[float, float] = (0.15, 0.6)
    gray: float = 0.05
    feathered: float = 0.25
    features: str = "filters"
    target_alpha: float = ALPHA
    target_scale: float = SCALE

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(option.default, float) and option.name != "target_scale" and not 0 <= value <= 1:
                raise ValueError(f"{option.name}: expected a share in [0, 1], got {value}")
            if isinstance(option.default, tuple) and not 0 < value[0] <= value[1]:
                raise ValueError(f"{option.name}: expected 0 < low <= high, got {value}")
        if not self.jpeg_range[0] < self.jpeg_range[1]:
            raise ValueError(f"jpeg_range: expected low < high, whose end is left out, got {self.jpeg_range}")
        if self.crop < 16:
            raise ValueError(f"crop: expected at least 16, got {self.crop}")
        if not self.target_scale > 0:
            raise ValueError(f"target_scale: expected > 0, got {self.target_scale}")
        check_features(self.features)


class Triplets(Dataset[Triplet]):
    """Endless triplets: index i gives the same triplet whatever was read before, so that training resumes exactly.

    The first `len(scenes)` indices visit each scene once, the next as many again in another order, and so on.
    """

    def __init__(self, scenes: Sequence[Scene], config: TripletConfig, *, seed: int = 0) -> None:
        for scene in scenes:
            if not scene.sources and config.synthetic < 1:
                raise ValueError(f"scenes: {scene.id} has no super-resolved image, and synthetic is below 1")
        self.scenes, self.config, self.seed = list(scenes), config, seed
        self.bank = open_features(config.features)

    def __getitem__(self, index: int) -> Triplet:
        epoch, position = divmod(index, len(self.scenes))
        order = torch.randperm(len(self.scenes), generator=stream(self.seed, epoch, 0))
        scene = self.scenes[int(order[position])]
        generator = stream(self.seed, index, 1)
        stored = scene.draw(generator)
        if stored is not None:
            return stored_triplet(stored, self.config, generator)
        gt, sr = self._pair(scene, generator)
        gt, sr = _defocus(_recolor([gt, sr], self.config, generator), self.config, generator)
        mask = _mask(self.config, generator)
        syn = region_swap(gt, sr, mask)
        target_syn, target_sr = fault_target(
            gt[None],
            torch.stack([syn, sr]),
            self.bank,
            alpha=self.config.target_alpha,
            scale=self.config.target_scale,
            aligned=scene.aligned,
        )
        gt, syn, sr = _treat_alike([gt, syn, sr], self.config, generator)
        return Triplet(gt, syn, sr, target_syn, target_sr, torch.tensor(scene.aligned))

    def _pair(self, scene: Scene, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A photo's crop and its distorted version, in the same place, orientation and size."""
        config = self.config
        prepare, side = _frame(scene.gt, config, generator, name=str(scene.gt_path))
        gt = prepare(scene.gt)
        if (name := self._synthetic(scene, generator)) is None:
            sr = prepare(scene.sr(choose(scene.sources, generator)))
            gt, sr = _as_by_a_camera([gt, sr], config, generator)
        else:
            (gt,) = _as_by_a_camera([gt], config, generator)
            sr = synthetic_source(name, gt, generator)
        if config.noisy and chance(config.noisy, generator):
            sr = (sr + _grain(sr, config.grain_range, generator)).clamp(0, 1)
        if side == config.crop:
            return gt, sr
        size = (config.crop, config.crop)
        return resize(gt, size), resize(sr, size)

    def _synthetic(self, scene: Scene, generator: torch.Generator) -> str | None:
        """The synthetic source to take, or none: a result of the scene."""
        if self.config.quilted and chance(self.config.quilted, generator):
            return quilted.__name__
        if not scene.sources or chance(self.config.synthetic, generator):
            return choose(list(SYNTHETIC_SOURCES), generator)
        return None


def stored_triplet(sample: StoredSample, config: TripletConfig, generator: torch.Generator) -> Triplet:
    """A random crop of a stored sample, whose images are aligned, varied as `config` says.

    Fault and target are the stored ones: `quilted`, `synthetic`, `camera`, `noisy`, `feathered`, `features`,
    `target_alpha` and `target_scale` do not apply.
    """
    prepare, side = _frame(sample.gt, config, generator, name=sample.row["photo"])
    images = [prepare(image) for image in (sample.gt, sample.syn, sample.sr)]
    target_syn, target_sr = (prepare(image) for image in (sample.target_syn, sample.target_sr))
    images = _recolor(images, config, generator)
    if side != config.crop:
        size = (config.crop, config.crop)
        images = [resize(image, size) for image in images]
        target_syn, target_sr = (resize(target, size, "bilinear") for target in (target_syn, target_sr))
    gt, syn, sr = _treat_alike(images, config, generator)
    return Triplet(gt, syn, sr, target_syn, target_sr, torch.tensor(True))


def _frame(
    image: Tensor, config: TripletConfig, generator: torch.Generator, *, name: str
) -> tuple[Callable[[Tensor], Tensor], int]:
    """A random place, orientation and side on `image`: what cuts it out of images (C,H,W), and the side."""
    height, width = image.shape[-2:]
    if min(height, width) < config.crop:
        raise ValueError(f"{name}: {width}x{height} is smaller than the crop of {config.crop}")
    side = config.crop
    if chance(config.resized, generator):
        side = round(config.crop / uniform32(*config.resize_range, generator))
        side = min(side, height, width)
    top, left = integer(0, height - side, generator), integer(0, width - side, generator)
    turns = integer(0, 3, generator)
    mirrored = chance(0.5, generator)

    def prepare(image: Tensor) -> Tensor:
        crop = image[:, top : top + side, left : left + side].float() / 255
        crop = crop.rot90(turns, (1, 2))
        return crop.flip(2) if mirrored else crop

    return prepare, side


def _defocus(images: list[Tensor], config: TripletConfig, generator: torch.Generator) -> list[Tensor]:
    """Blur the same part of all images, or none."""
    if not chance(config.defocused, generator):
        return images
    sigma = uniform32(*config.defocus_range, generator)
    part = random_blobs(config.crop, config.crop, generator, area=(0.2, 0.9))
    part = gaussian_blur(part.expand(3, -1, -1), 6.0)
    return [torch.lerp(image, gaussian_blur(image, sigma), part) for image in images]


def _as_by_a_camera(images: list[Tensor], config: TripletConfig, generator: torch.Generator) -> list[Tensor]:
    """Soft all over, under grain: all images alike, or none."""
    if not (config.camera and chance(config.camera, generator)):
        return images
    sigma = uniform32(*config.camera_blur, generator)
    grain = _grain(images[0], config.camera_grain, generator)
    return [(gaussian_blur(image, sigma) + grain).clamp(0, 1) for image in images]


def _treat_alike(images: list[Tensor], config: TripletConfig, generator: torch.Generator) -> list[Tensor]:
    """Darken, soften, grain and compress all images in the same way, or not."""
    if chance(config.dimmed, generator):
        gain = uniform32(*config.dim_range, generator)
        images = [gain * image for image in images]
    if chance(config.softened, generator):
        sigma = uniform32(*config.soften_range, generator)
        images = [gaussian_blur(image, sigma) for image in images]
    if chance(config.grainy, generator):
        grain = _grain(images[0], config.grain_range, generator)
        images = [(image + grain).clamp(0, 1) for image in images]
    if chance(config.compressed, generator):
        quality = integer(config.jpeg_range[0], config.jpeg_range[1] - 1, generator)
        images = [jpeg(image, quality) for image in images]
    return images


def _grain(image: Tensor, strength: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Gaussian grain, with or without color, of one pixel or of up to three."""
    channels = 1 if chance(0.5, generator) else 3
    noise = torch.randn(channels, *image.shape[-2:], generator=generator).expand(3, -1, -1)
    noise = gaussian_blur(noise, uniform32(0.3, 1.2, generator))
    return noise / noise.std() * (uniform32(*strength, generator) / 255)


def _mask(config: TripletConfig, generator: torch.Generator) -> Tensor:
    # A crop is part of a photo: faults may be nearly as large as it is.
    if chance(0.6, generator):
        mask = random_boxes(config.crop, config.crop, generator, side=(0.12, 0.75))
    else:
        mask = random_blobs(config.crop, config.crop, generator, area=(0.03, 0.6))
    if chance(config.feathered, generator):
        mask = gaussian_blur(mask.expand(3, -1, -1), uniform32(1, 5, generator))[:1]
    return mask


def _recolor(images: Sequence[Tensor], config: TripletConfig, generator: torch.Generator) -> list[Tensor]:
    """The same random brightness, contrast and saturation for all, or no color."""
    gain, offset, saturation = (torch.rand(3, generator=generator) - 0.5).tolist()
    color = 0.0 if chance(config.gray, generator) else 1 + 0.6 * saturation

    def apply(image: Tensor) -> Tensor:
        gray = image.mean(0, keepdim=True)
        image = gray + color * (image - gray)
        return ((image - 0.5) * (1 + 0.4 * gain) + 0.5 + 0.15 * offset).clamp(0, 1)

    return [apply(image) for image in images]
