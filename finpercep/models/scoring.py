"""Scoring images of any kind and size: batches by size, tiles for large ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.io.images import ImageError, to_tensor
from finpercep.models.head import at_least_float32

if TYPE_CHECKING:
    from finpercep.models.reward_model import RewardModel, RewardOutput

TILE = 1536
"""Default tile side in pixels: bounds the memory beyond the image and its map."""
_SELECT = 1 << 22  # pixels that worst_mean looks at together


def worst_mean(degradation: Tensor | Sequence[Tensor], fraction: float = 0.01) -> Tensor:
    """max̂(M): mean of the worst `fraction` of pixels (at least one) of each map; no single pixel makes it [open].

    Takes ``(B, 1, H, W)``, or a list of ``(1, H, W)``, as `RewardModel.score` returns; gives ``(B,)``, float32 or, of
    float64 maps, float64; differentiable.

    Raises:
        ValueError: `fraction` outside (0, 1], or maps of another shape.
    """
    if not 0 < fraction <= 1:  # NaN too
        raise ValueError(f"fraction: expected more than 0 and at most 1, got {fraction}")
    if not isinstance(degradation, Tensor):
        maps = [worst_mean(one[None], fraction) for one in degradation]
        return torch.cat(maps) if maps else torch.empty(0)
    if degradation.dim() != 4:
        raise ValueError(f"degradation: expected (B,1,H,W) or a list of (1,H,W), got {tuple(degradation.shape)}")
    pixels = degradation.flatten(1)
    count = max(1, round(fraction * pixels.shape[1]))
    if pixels.shape[1] > _SELECT:  # topk keeps 16 bytes a pixel: select in parts, then among what they gave
        parts = pixels.split(_SELECT, dim=1)
        pixels = torch.cat([part.topk(min(count, part.shape[1]), dim=1, sorted=False).values for part in parts], 1)
    worst = pixels.topk(count, dim=1, sorted=False).values
    return worst.mean(1, dtype=at_least_float32(worst.dtype))


def score(model: RewardModel, images: Any, *, batch_size: int, tile: int | None) -> RewardOutput:
    """See `RewardModel.score`."""
    from finpercep.models.reward_model import RewardOutput

    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    side = tile_side(model, tile)
    items, stacked = as_images(images)
    scores: list[Tensor] = [torch.empty(())] * len(items)
    maps: list[Tensor] = [torch.empty(())] * len(items)
    with evaluation(model):
        for group in same_size_groups(items, batch_size, side):
            if max(items[group[0]].shape[-2:]) > side:
                out = [score_tiled(model, items[i], side) for i in group]
                group_scores, group_maps = torch.stack([s for s, _ in out]), [m for _, m in out]
            else:
                device, dtype = _placement(model)
                result = model(_stack([as_float(items[i].to(device), dtype) for i in group]))
                group_scores, group_maps = result.score.float().cpu(), list(result.map.float().cpu())
            for i, s, m in zip(group, group_scores, group_maps, strict=True):
                scores[i], maps[i] = s, m
    all_scores = torch.stack(scores) if scores else torch.empty(0)
    return RewardOutput(all_scores, _stack(maps) if stacked else maps)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module is in its own mode again (some may have been frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
    """A batch in the layout of `to_tensor`'s single images: tensors (B,C,H,W), arrays (B,H,W,C)."""
    channels, last = batch.shape[1], batch.shape[3]
    if isinstance(batch, Tensor):
        return batch.permute(0, 3, 1, 2) if channels != 3 and last == 3 else batch
    return batch.transpose(0, 2, 3, 1) if channels == 3 or last not in (1, 2, 3, 4) else batch


def same_size_groups(items: Sequence[Tensor], batch_size: int, side: int) -> Iterator[list[int]]:
    """Indices of images that can go through together: one size, at most `batch_size` and a tile's pixels."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, item in enumerate(items):
        by_size.setdefault((item.shape[-2], item.shape[-1]), []).append(i)
    for (height, width), indices in by_size.items():
        step = 1 if max(height, width) > side else min(batch_size, max(1, side**2 // (height * width)))
        for start in range(0, len(indices), step):
            yield indices[start : start + step]


def tile_side(model: RewardModel, tile: int | None) -> int:
    """The tile's side: a positive multiple of the encoder's stride."""
    stride = model.encoder.stride
    side = TILE if tile is None else tile
    if side < stride:
        raise ValueError(f"tile: expected at least the encoder's stride of {stride} pixels, got {tile}")
    return side // stride * stride


def score_tiled(model: RewardModel, image: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Score () and map (1,H,W) of one (3,H,W) image, by tiles of `side` pixels with a halo of context around each.

    The halo is as wide as the model can see, so the map has no seams; Eq. 7's mean is the mean over the tiles'
    cores, so the score is the whole image's. (A transformer sees everything: there the halo is only context.)
    """
    device, dtype = _placement(model)
    stride = model.encoder.stride
    halo = -(-context_radius(model) // stride) * stride
    height, width = image.shape[-2:]
    result = torch.empty(1, height, width)
    pooled_sum: Tensor | float = 0.0
    cells = 0
    for rows, row_core in tile_spans(height, side, halo, stride):
        for columns, column_core in tile_spans(width, side, halo, stride):
            crop = as_float(padded_crop(image, rows, columns).to(device), dtype)[None]
            pooled, degradation = model.pool_and_map(crop, (row_core, column_core))
            count = degradation.shape[-2] * degradation.shape[-1]
            pooled_sum, cells = pooled_sum + pooled.float() * count, cells + count
            top, left = rows.start + row_core.start, columns.start + column_core.start
            target = result[:, top : top + degradation.shape[-2], left : left + degradation.shape[-1]]
            target.copy_(degradation[0, :, : target.shape[-2], : target.shape[-1]])
    assert isinstance(pooled_sum, Tensor)
    return model.head.regress(pooled_sum / cells)[0].float().cpu(), result


def context_radius(model: RewardModel) -> int:
    """Pixels around a tile that its map and pooled feature depend on."""
    encoder = model.encoder
    # The decoder adds two 3x3 convolutions and a bilinear step at each level; twice the stride covers both.
    return encoder.radius + 3 * encoder.stride


def tile_spans(length: int, side: int, halo: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """(span in the image incl. halo, core within the span); spans may pass the end, up to a multiple of `stride`."""
    padded = -(-length // stride) * stride
    for start in range(0, padded, side):
        stop = min(start + side, padded)
        low, high = max(0, start - halo), min(padded, stop + halo)
        yield slice(low, high), slice(start - low, stop - low)


def padded_crop(image: Tensor, rows: slice, columns: slice) -> Tensor:
    """Part of (3,H,W); what lies beyond the image repeats its last row and column."""
    height, width = image.shape[-2:]
    crop = image[:, rows.start : min(rows.stop, height), columns.start : min(columns.stop, width)]
    bottom, right = max(0, rows.stop - height), max(0, columns.stop - width)
    if not (bottom or right):
        return crop
    return F.pad(crop[None].float(), (0, right, 0, bottom), mode="replicate")[0].to(image.dtype)


def as_float(image: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 to [0, 1]; floats are only cast."""
    return image.to(dtype) / 255 if image.dtype == torch.uint8 else image.to(dtype)


def _placement(model: RewardModel) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters())
    return parameter.device, parameter.dtype
