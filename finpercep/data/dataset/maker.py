"""From photos to samples: I_GT -> I_LR -> I_SR; I_syn = mask·I_SR + (1-mask)·I_GT; M_gt between I_GT and I_syn."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finpercep.data.dataset.config import MakeConfig
from finpercep.data.degradations.apply import degrade
from finpercep.data.features.kinds import open_features
from finpercep.data.features.protocol import Features
from finpercep.data.image_ops import to_uint8
from finpercep.data.masks.kinds import open_mask_kind, parse_masks
from finpercep.data.masks.maker import DrawnMask, MaskMaker
from finpercep.data.randomness import integer, seed_of, seeded
from finpercep.data.sources.folder import is_cut
from finpercep.data.sources.kinds import SourceSpec, open_source
from finpercep.data.sources.protocol import Photo, Region, Source, SourceInput
from finpercep.data.swap import region_swap
from finpercep.data.targets import fuse_target
from finpercep.io.image_files import image_sides
from finpercep.io.images import ImageError, load_image
from finpercep.runs.devices import take_full_float32

__all__ = ["Maker", "Sample", "StageClock"]

FAULTLESS = 2  # levels of 255: a target that is nowhere above this inside the mask shows no fault
BATCH = 8  # images that go through the feature extractor and the target together


@dataclass
class Sample:
    """One row of the data set; images uint8 (C,H,W), maps and masks (1,H,W)."""

    photo: str
    region: Region
    source: Source
    number: int
    gt: Tensor
    lr: Tensor | None
    sr: Tensor
    syn: Tensor
    mask: DrawnMask
    target: Tensor
    target_sr: Tensor
    degradation: dict[str, Any] | None


@dataclass
class StageClock:
    """Seconds and images per stage."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @contextmanager
    def stage(self, name: str, count: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
        self.counts[name] += count


@dataclass
class _Part:
    """One region of one photo."""

    photo: Photo
    size: tuple[int, int]
    region: Region
    number: int
    gt: Tensor
    lr: Tensor | None = None
    degradation: dict[str, Any] | None = None


def _shared(photo: Photo, size: tuple[int, int], scale: int) -> tuple[int, int]:
    """(height, width) that a photo of `size` and its results have, where these are cut to a multiple of the scale.

    Results of other sizes are for their source to refuse.
    """
    shared = size
    for path in photo.results.values():
        try:
            sides = image_sides(path)
        except ImageError:
            continue  # named when it is read
        if is_cut(sides, size, scale):
            shared = (min(shared[0], sides[0]), min(shared[1], sides[1]))
    return shared


class Maker:
    """Holds the models; makes the samples of some photos, a function of photos and settings alone."""

    def __init__(self, config: MakeConfig, specs: Sequence[SourceSpec], *, device: str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        take_full_float32(self.device)  # M_gt is a difference of features
        self.sources: list[Source] = [
            open_source(spec, scale=config.scale, device=device, tile=config.tile, steps=config.steps) for spec in specs
        ]
        kinds = [
            open_mask_kind(kind, value, device=device, points_per_side=config.points_per_side)
            for kind, value in parse_masks(config.masks)
        ]
        self.masks = MaskMaker(kinds, area=config.area, feathered=config.feathered, feather=config.feather)
        self.features: Features | None = open_features(config.features, device=device)
        self.needs_lr = any(source.needs_lr for source in self.sources)
        self.clock = StageClock()
        self.left_out: list[str] = []

    @torch.no_grad()
    def parts(self, photos: Sequence[Photo]) -> Iterator[list[Sample]]:
        """The samples of each region of each photo, in order; the low-resolution versions of all are made at once."""
        parts = [part for photo in photos for part in self._read(photo)]
        if self.needs_lr:
            self._make_lr(parts)
        for part in parts:
            samples = self._samples(part)
            if samples:
                yield samples

    def _read(self, photo: Photo) -> list[_Part]:
        with self.clock.stage("read", 1):
            try:
                image = load_image(photo.gt)
                size = (image.shape[1], image.shape[2])
                regions = self._regions(photo, size)
                low = None if photo.lr is None else self._read_lr(photo, size)
            except ImageError as error:
                self._bad(error)
                return []
            parts = [_Part(photo, size, r, i, r.of(image).contiguous()) for i, r in enumerate(regions)]
            if low is not None:
                for part in parts:
                    part.lr = part.region.of(low, self.config.scale).contiguous()
            return parts

    def _read_lr(self, photo: Photo, size: tuple[int, int]) -> Tensor:
        """The photo's own low-resolution version.

        Raises:
            ImageError: it cannot be read, or is not the photo's size ÷ scale.
        """
        assert photo.lr is not None
        low, scale = load_image(photo.lr), self.config.scale
        if tuple(low.shape[1:]) != (size[0] // scale, size[1] // scale):
            raise ImageError(
                f"{photo.lr}: expected {size[1] // scale}x{size[0] // scale}, 1/{scale} of {photo.gt}, "
                f"got {low.shape[2]}x{low.shape[1]}"
            )
        return low

    def _regions(self, photo: Photo, size: tuple[int, int]) -> list[Region]:
        """What photo and results have, cut to a multiple of the scale where low-resolution versions are made, or crops.

        Super-resolution makes 48 x 56 of what a photo of 49 x 58 was reduced to.
        """
        crop, scale = self.config.crop, self.config.scale
        shared = _shared(photo, size, scale)
        if not crop:
            step = scale if self.needs_lr or photo.lr is not None else 1
            height, width = (side // step * step for side in shared)
            if min(height, width) < 8 * step:
                raise ImageError(f"{photo.gt}: expected sides of {8 * step} or more, got {size[1]}x{size[0]}")
            return [Region(0, 0, height, width)]
        if min(shared) < crop:
            raise ImageError(f"{photo.gt}: {size[1]}x{size[0]} is smaller than the crop of {crop}")
        places = math.prod((side - crop) // scale + 1 for side in shared)
        if places < self.config.crops:
            self.left_out.append(f"{photo.id}: {self.config.crops} crops of {crop} asked for, there are {places}")
        regions: list[Region] = []
        for number in range(min(self.config.crops, places)):
            generator = seeded(self.config.seed, "crop", photo.id, number)
            region = None
            while region is None or region in regions:  # a crop's place is its id
                top, left = (scale * integer(0, (side - crop) // scale, generator) for side in shared)
                region = Region(top, left, crop, crop)
            regions.append(region)
        return regions

    def _make_lr(self, parts: Sequence[_Part]) -> None:
        """Degrade all parts that have no low-resolution version, same sizes in one batch."""
        groups: dict[tuple[int, int], list[_Part]] = defaultdict(list)
        for part in parts:
            if part.lr is None:
                groups[part.region[2:]].append(part)
        for group in groups.values():
            with self.clock.stage("degrade", len(group)):
                seeds = [seed_of(self.config.seed, "lr", part.photo.id, part.number) for part in group]
                images = torch.stack([part.gt for part in group]).to(self.device).float() / 255
                low, drawn = degrade(images, seeds, self.config.degradation, scale=self.config.scale)
                for part, image, record in zip(group, low.cpu(), drawn, strict=True):
                    part.lr, part.degradation = to_uint8(image), record

    def _samples(self, part: _Part) -> list[Sample]:
        config, key = self.config, (part.photo.id, part.number)
        results = [(source, self._result(source, part)) for source in self.sources]
        made = [(source, image) for source, image in results if image is not None]
        if not made:
            return []
        with self.clock.stage("masks", len(made) * config.masks_per_image):
            prepared = self.masks.prepare(part.gt)
            masks = [
                [
                    self.masks.draw(prepared, part.gt, seeded(config.seed, "mask", *key, source.name, number))
                    for number in range(config.masks_per_image)
                ]
                for source, _ in made
            ]
        with self.clock.stage("swap", len(made) * config.masks_per_image):
            swapped = [
                [region_swap(part.gt, image, mask.alpha) for mask in own]
                for (_, image), own in zip(made, masks, strict=True)
            ]
        versions = [image for _, image in made] + [image for own in swapped for image in own]
        targets = self._targets(part.gt, versions)
        of_sr, of_syn = targets[: len(made)], iter(targets[len(made) :])
        samples = []
        for (source, image), own, syns, target_sr in zip(made, masks, swapped, of_sr, strict=True):
            faultless = 0
            for number, (mask, syn) in enumerate(zip(own, syns, strict=True)):
                target = next(of_syn)
                inside = target * (mask.alpha > 0)
                if int(inside.max()) <= FAULTLESS:
                    faultless += 1
                    continue
                if config.restrict:
                    target = inside
                sample = Sample(
                    part.photo.id,
                    part.region,
                    source,
                    number,
                    part.gt,
                    part.lr,
                    image,
                    syn,
                    mask,
                    target,
                    target_sr,
                    part.degradation,
                )
                samples.append(sample)
            if faultless:
                self.left_out.append(
                    f"{part.photo.id}: {faultless} of {len(own)} samples of {source.name} have no fault, "
                    "they look like the photo inside the mask"
                )
        return samples

    def _result(self, source: Source, part: _Part) -> Tensor | None:
        generator = seeded(self.config.seed, "sr", part.photo.id, part.number, source.name)
        given = SourceInput(part.photo, part.size, part.region, part.gt, part.lr, generator)
        with self.clock.stage(f"sr {source.name}", 1):
            try:
                image = source(given)
                if image.shape != part.gt.shape:
                    raise ImageError(
                        f"{source.name}: expected {tuple(part.gt.shape)} for {part.photo.gt}, got {tuple(image.shape)}"
                    )
                return image
            except ImageError as error:
                self._bad(error)
                return None

    def _targets(self, gt: Tensor, versions: Sequence[Tensor]) -> list[Tensor]:
        """M_gt of each version against the photo, uint8 (1,H,W); the photo's features are computed once."""
        photo, config = gt[None].to(self.device), self.config
        reference = self._features(photo)
        targets: list[Tensor] = []
        for first in range(0, len(versions), BATCH):
            batch = torch.stack(list(versions[first : first + BATCH])).to(self.device)
            features = self._features(batch)
            with self.clock.stage("target", len(batch)):
                maps = fuse_target(
                    photo,
                    batch,
                    reference,
                    features,
                    alpha=config.alpha,
                    normalize=config.normalize,
                    scale=config.target_scale,
                )
                targets += list(to_uint8(maps).cpu())
        return targets

    def _features(self, images: Tensor) -> Tensor | None:
        if self.features is None:
            return None
        with self.clock.stage("features", len(images)):
            return self.features(images.float() / 255)

    def _bad(self, error: ImageError) -> None:
        if not self.config.skip_bad:
            raise error
        self.left_out.append(str(error))
