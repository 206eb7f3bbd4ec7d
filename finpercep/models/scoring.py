"""Scoring images of any kind and size: batches by size, tiles for large ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from finpercep.io.images import ImageError, to_tensor
from finpercep.models.head import ScoreHead
from finpercep.models.output import RewardOutput
from finpercep.models.precision import at_least_float32
from finpercep.models.tiles import padded_crop, tile_spans

TILE = 1536
"""Default tile side in pixels: bounds the memory beyond the image and its map."""
_SELECT = 1 << 22  # pixels that worst_mean looks at together


class Encoder(Protocol):
    """What scoring needs to know of an encoder."""

    stride: int
    radius: int


class Scorer(Protocol):
    """A model that scores images (B,3,H,W) of its own device and type, whole or by tiles."""

    @property
    def encoder(self) -> Encoder | Any: ...
    @property
    def head(self) -> ScoreHead | Any: ...
    @property
    def has_map(self) -> bool: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def __call__(self, images: Tensor) -> RewardOutput: ...
    def pool_and_map(self, images: Tensor, core: tuple[slice, slice] | None = None) -> tuple[Tensor, Tensor | None]: ...


def worst_mean(degradation: Tensor | Sequence[Tensor], fraction: float = 0.01) -> Tensor:
    """max̂(M): mean of the worst `fraction` of pixels (at least one) of each map; no single pixel makes it [open].

    Args:
        degradation: (B,1,H,W), or a list of (1,H,W) as `RewardModel.score` returns.
        fraction: in (0, 1].

    Returns:
        (B,), float32 or, of float64 maps, float64; differentiable.

    Raises:
        ValueError: `fraction` outside (0, 1], or maps of another shape.
    """
    if not 0 < fraction <= 1:  # NaN too
        raise ValueError(f"fraction: expected more than 0 and at most 1, got {fraction}")
    if degradation is None:
        raise ValueError("degradation: expected a map, got None from a model without one")
    if not isinstance(degradation, Tensor):
        maps = [worst_mean(one[None], fraction) for one in degradation]
        return torch.cat(maps) if maps else torch.empty(0, dtype=torch.float32, device="cpu")
    if degradation.dim() != 4:
        raise ValueError(f"degradation: expected (B,1,H,W) or a list of (1,H,W), got {tuple(degradation.shape)}")
    pixels = degradation.flatten(1)
    count = max(1, round(fraction * pixels.shape[1]))
    if pixels.shape[1] > _SELECT:  # topk keeps 16 bytes a pixel: select in parts, then among what they gave
        parts = pixels.split(_SELECT, dim=1)
        pixels = torch.cat([part.topk(min(count, part.shape[1]), dim=1, sorted=False).values for part in parts], 1)
    worst = pixels.topk(count, dim=1, sorted=False).values
    return worst.mean(1, dtype=at_least_float32(worst.dtype))


def score(model: Scorer, images: Any, *, batch_size: int, tile: int | None) -> RewardOutput:
    """See `RewardModel.score`; `model` is in evaluation mode."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    side = tile_side(model, tile)
    items, stacked = as_images(images)
    scores: list[Tensor] = [torch.empty(())] * len(items)
    maps: list[Tensor] = [torch.empty(())] * len(items)
    for group in same_size_groups(items, batch_size, side):
        for i, (one_score, one_map) in zip(group, _score_group(model, [items[i] for i in group], side), strict=True):
            scores[i] = one_score
            if one_map is not None:
                maps[i] = one_map
    all_scores = torch.stack(scores) if scores else torch.empty(0, dtype=torch.float32, device="cpu")
    if not model.has_map:
        return RewardOutput(all_scores, None)
    return RewardOutput(all_scores, _stack(maps) if stacked else maps)


def _score_group(model: Scorer, images: list[Tensor], side: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Score () and map (1,H,W) of each of some images of one size."""
    if max(images[0].shape[-2:]) > side:
        for image in images:
            yield score_tiled(model, image, side)
        return
    device, dtype = _placement(model)
    result = model(_stack([as_float(image.to(device), dtype) for image in images]))
    assert not isinstance(result.map, list)
    maps = [None] * len(images) if result.map is None else result.map.float().cpu()
    yield from zip(result.score.float().cpu(), maps, strict=True)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """`torch.stack`, without the copy where there is only one."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def as_images(images: Any) -> tuple[list[Tensor], bool]:
    """Separate (3,H,W) tensors, and whether the maps are to be stacked (a batch or one image was given)."""
    if isinstance(images, (list, tuple)):
        return [to_tensor(image, name=f"images[{i}]") for i, image in enumerate(images)], False
    if isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4:
        if len(images) == 0:
            raise ImageError(f"images: expected at least one image, got shape {tuple(images.shape)}")
        batch: Any = _as_single_images(images)
        return [to_tensor(image, name=f"images[{i}]") for i, image in enumerate(batch)], True
    return [to_tensor(images, name="images")], True


def _as_single_images(batch: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """A batch in the layout of `to_tensor`'s single images: tensors (B,C,H,W), arrays (B,H,W,C).

    Where both can be meant, as of images 3 pixels high, it is the layout that is usual: that of `to_tensor`.
    """
    channels, last = batch.shape[1], batch.shape[3]
    if isinstance(batch, Tensor):
        return batch.permute(0, 3, 1, 2) if channels != 3 and last == 3 else batch
    return batch if last in (1, 2, 3, 4) else batch.transpose(0, 2, 3, 1)


def same_size_groups(items: Sequence[Tensor], batch_size: int, side: int) -> Iterator[list[int]]:
    """Indices of images that can go through together: one size, at most `batch_size` and a tile's pixels."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, item in enumerate(items):
        by_size.setdefault((item.shape[-2], item.shape[-1]), []).append(i)
    for (height, width), indices in by_size.items():
        step = 1 if max(height, width) > side else min(batch_size, max(1, side**2 // (height * width)))
        for start in range(0, len(indices), step):
            yield indices[start : start + step]


def tile_side(model: Scorer, tile: int | None) -> int:
    """The tile's side: a positive multiple of the encoder's stride."""
    stride = model.encoder.stride
    side = TILE if tile is None else tile
    if side < stride:
        raise ValueError(f"tile: expected at least the encoder's stride of {stride} pixels, got {tile}")
    return side // stride * stride


def score_tiled(model: Scorer, image: Tensor, side: int) -> tuple[Tensor, Tensor | None]:
    """Score () and map (1,H,W) of one (3,H,W) image, by tiles of `side` pixels with a halo of context around each.

    The halo is as wide as the model can see, so the map has no seams; Eq. 7's mean is the mean over the tiles'
    cores, so the score is the whole image's. (A transformer sees everything: there the halo is only context.)
    """
    device, dtype = _placement(model)
    stride = model.encoder.stride
    halo = -(-context_radius(model) // stride) * stride
    height, width = image.shape[-2:]
    result = torch.empty(1, height, width, dtype=torch.float32, device="cpu") if model.has_map else None
    pooled_sum: Tensor | float = 0.0
    cells = 0
    for rows, row_core in tile_spans(height, side, halo, stride):
        for columns, column_core in tile_spans(width, side, halo, stride):
            crop = as_float(padded_crop(image, rows, columns).to(device), dtype)[None]
            pooled, degradation = model.pool_and_map(crop, (row_core, column_core))
            count = (row_core.stop - row_core.start) * (column_core.stop - column_core.start)
            pooled_sum, cells = pooled_sum + pooled.float() * count, cells + count
            if result is not None and degradation is not None:
                top, left = rows.start + row_core.start, columns.start + column_core.start
                target = result[:, top : top + degradation.shape[-2], left : left + degradation.shape[-1]]
                target.copy_(degradation[0, :, : target.shape[-2], : target.shape[-1]])
    assert isinstance(pooled_sum, Tensor)
    return model.head.regress(pooled_sum / cells)[0].float().cpu(), result


def context_radius(model: Scorer) -> int:
    """Pixels around a tile that its map and pooled feature depend on."""
    encoder = model.encoder
    # The decoder adds two 3x3 convolutions and a bilinear step at each level; twice the stride covers both.
    return encoder.radius + 3 * encoder.stride


def as_float(image: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 to [0, 1]; floats are only cast. Pixels stay in float32 for models in half precision.

    Raises:
        TypeError: other numbers, of which it is not known what white is.
    """
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"images: expected float in [0, 1] or uint8, got {image.dtype}")
    dtype = at_least_float32(dtype)
    return image.to(dtype) / 255 if image.dtype == torch.uint8 else image.to(dtype)


def _placement(model: Scorer) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters())
    return parameter.device, parameter.dtype
