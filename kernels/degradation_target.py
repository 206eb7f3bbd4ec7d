"""degradation_target: cosine distance, fused raw map, normalisation; and back.

Forward reads images and features once. `none` and `scale` need nothing more; `minmax` finds the bounds and their ties
while it writes the raw map and then rescales that one channel in place. `percentile` takes its two order statistics
from `torch.topk`, on the raw map.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from finpercep.kernels import _config as config
from finpercep.kernels._common import (
    accumulation_type,
    bilinear_tap,
    divide,
    load,
    root,
    store,
    tap_weight,
    touching,
    touching_span,
    triton_type,
)

# The indices in finpercep.ops.degradation_target.NORMALIZATIONS
NONE, MINMAX, PERCENTILE, SCALE = (tl.constexpr(i) for i in range(4))
COSINE_EPS = tl.constexpr(1e-24)  # on the product of the squared norms, as in the reference


# ---- forward --------------------------------------------------------------------------------------------------------


@triton.jit
def target_cosine_kernel(
    f,
    g,  # [B, channels, pixels]
    moments,  # [B, 3, pixels]: f·g, |f|², |g|²
    distance,  # [B, pixels]
    channels,
    pixels,
    blocks,
    A: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    image = program // blocks
    pixel = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    dot, ff, gg = (
        tl.zeros([BLOCK_C, BLOCK_P], A),
        tl.zeros([BLOCK_C, BLOCK_P], A),
        tl.zeros([BLOCK_C, BLOCK_P], A),
    )
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        mask = (channel < channels)[:, None] & inside[None, :]
        at = ((image * channels + channel) * pixels)[:, None] + pixel[None, :]
        x, y = load(f + at, mask, A), load(g + at, mask, A)
        # Written out, so that identical features give three identical sums.
        dot, ff, gg = tl.fma(x, y, dot), tl.fma(x, x, ff), tl.fma(y, y, gg)
    dots, ffs, ggs = tl.sum(dot, 0), tl.sum(ff, 0), tl.sum(gg, 0)
    product = ffs * ggs
    safe = product > COSINE_EPS
    gap = 1 - divide(dots, root(tl.where(safe, product, 1.0)))  # √(x·x) is exactly x
    gap = tl.where(gap < 0, 0.0, gap)
    gap = tl.where(safe, gap, tl.where(ffs != ggs, 1.0, 0.0))
    to = image * 3 * pixels + pixel
    tl.store(moments + to, dots, mask=inside)
    tl.store(moments + to + pixels, ffs, mask=inside)
    tl.store(moments + to + 2 * pixels, ggs, mask=inside)
    tl.store(distance + image * pixels + pixel, gap, mask=inside)


@triton.jit
def _upsampled(distance, y, x, mask, h, w, height, width, A: tl.constexpr):
    """Bilinear upsampling of one low-resolution plane at the pixels [y, x]."""
    top, bottom, down = bilinear_tap(y, height, h, A)
    left, right, across = bilinear_tap(x, width, w, A)
    upper, lower = (top.to(tl.int64) * w)[:, None], (bottom.to(tl.int64) * w)[:, None]
    left, right, across, down = left[None, :], right[None, :], across[None, :], down[:, None]
    above = (1 - across) * load(distance + upper + left, mask, A) + across * load(distance + upper + right, mask, A)
    below = (1 - across) * load(distance + lower + left, mask, A) + across * load(distance + lower + right, mask, A)
    return (1 - down) * above + down * below


@triton.jit
def _block_bounds(values, mask, partial):
    """Smallest, largest and how many equal them, of one tile; NaN if there is one. Writes partial[0:4]."""
    is_nan = tl.max((mask & (values != values)).to(tl.int32)) > 0
    low = tl.min(tl.where(mask, values, float("inf")))
    high = tl.max(tl.where(mask, values, float("-inf")))
    low, high = tl.where(is_nan, float("nan"), low), tl.where(is_nan, float("nan"), high)
    lows = tl.sum((mask & (values == low)).to(tl.int32))
    highs = tl.sum((mask & (values == high)).to(tl.int32))
    tl.store(partial + 0, low)
    tl.store(partial + 1, high)
    tl.store(partial + 2, lows.to(values.dtype))
    tl.store(partial + 3, highs.to(values.dtype))


@triton.jit
def target_raw_kernel(
    reference,
    distorted,  # [B, 3, height, width]
    distance,  # [B, h, w] or None
    out,  # [B, 1, height, width]
    bounds,  # [B, 4], written with zeros where NORMALIZE has none
    partial,  # [B, tiles, 4], for minmax
    height,
    width,
    h,
    w,
    column_blocks,
    tiles,
    alpha: tl.float64,
    scale: tl.float64,
    NORMALIZE: tl.constexpr,
    IS_BYTE: tl.constexpr,
    A: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    image = program // tiles
    tile = (program % tiles).to(tl.int32)
    y = tile // column_blocks * ROWS + tl.arange(0, ROWS)
    x = tile % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    mask = (y < height)[:, None] & (x < width)[None, :]
    pixel = y.to(tl.int64)[:, None] * width + x[None, :]
    plane = tl.full((), height, tl.int64) * width
    raw = tl.zeros([ROWS, COLUMNS], A)
    for channel in tl.static_range(3):
        at = (image * 3 + channel) * plane + pixel
        raw += tl.abs(load(reference + at, mask, A) - load(distorted + at, mask, A))
    weight = tl.full((), 1.0, A)
    if distance is not None:
        weight = tl.full((), alpha, A)
    if IS_BYTE:
        weight = weight * (1.0 / 255)
    raw = raw * divide(weight, tl.full((), 3.0, A))
    if distance is not None:
        upsampled = _upsampled(distance + image * h * w, y, x, mask, h, w, height, width, A)
        raw += tl.full((), 1 - alpha, A) * upsampled
    if NORMALIZE == SCALE:
        largest = tl.full([ROWS, COLUMNS], scale, A)
        raw = tl.where(raw >= largest, 1.0, divide(raw, largest))
    tl.store(out + image * plane + pixel, raw, mask=mask)
    if NORMALIZE == MINMAX:
        _block_bounds(raw, mask, partial + program * 4)
    elif NORMALIZE != PERCENTILE:
        field = tl.arange(0, 4)
        tl.store(bounds + image * 4 + field, tl.zeros([4], A), mask=field + 4 * tile < 4)  # the first tile only


@triton.jit
def target_bounds_kernel(partial, bounds, tiles, floor: tl.float64, A: tl.constexpr, BLOCK: tl.constexpr):
    """Adds up the tiles of one image: bounds[b] = (low, high, ties of low, ties of high)."""
    image = tl.program_id(0).to(tl.int64)
    partial += image * tiles * 4
    low, high = tl.full([BLOCK], float("inf"), A), tl.full([BLOCK], float("-inf"), A)
    is_nan = tl.zeros([BLOCK], tl.int32)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        at = partial + tile.to(tl.int64) * 4
        one, other = (
            tl.load(at, mask=tile < tiles, other=float("inf")),
            tl.load(at + 1, mask=tile < tiles, other=float("-inf")),
        )
        is_nan = tl.maximum(is_nan, (one != one).to(tl.int32))
        low, high = tl.where(one < low, one, low), tl.where(other > high, other, high)
    smallest, largest = tl.min(low, 0), tl.max(high, 0)
    any_nan = tl.max(is_nan, 0) > 0
    smallest, largest = tl.where(any_nan, float("nan"), smallest), tl.where(any_nan, float("nan"), largest)
    lows, highs = tl.zeros([BLOCK], A), tl.zeros([BLOCK], A)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        at = partial + tile.to(tl.int64) * 4
        equal_low = tl.load(at, mask=tile < tiles, other=float("inf")) == smallest
        equal_high = tl.load(at + 1, mask=tile < tiles, other=float("-inf")) == largest
        lows += tl.where(equal_low, tl.load(at + 2, mask=tile < tiles, other=0.0), 0.0)
        highs += tl.where(equal_high, tl.load(at + 3, mask=tile < tiles, other=0.0), 0.0)
    # Below the floor no pixel reaches 1: nothing shares a gradient of the upper bound.
    sharing = tl.where(largest - smallest < tl.full((), floor, A), 0.0, tl.sum(highs, 0))
    tl.store(bounds + image * 4 + 0, smallest)
    tl.store(bounds + image * 4 + 1, largest)
    tl.store(bounds + image * 4 + 2, tl.sum(lows, 0))
    tl.store(bounds + image * 4 + 3, sharing)


@triton.jit
def _range(bounds, floor, A: tl.constexpr):
    """(low, high, what to divide by)"""
    low, high = tl.load(bounds), tl.load(bounds + 1)
    least = tl.full((), floor, A)
    return low, high, tl.where(high - low < least, least, high - low)


@triton.jit
def target_rescale_kernel(
    raw,
    out,  # [B, pixels], may be the same
    bounds,  # [B, 4]
    ties,  # [B, tiles, 2] for percentile, else None
    pixels,
    tiles,
    floor: tl.float64,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    image = program // tiles
    pixel = program % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    low, high, divisor = _range(bounds + image * 4, floor, A)
    value = load(raw + image * pixels + pixel, inside, A)
    scaled = divide(value - low, tl.broadcast_to(divisor, value.shape))
    if ties is not None:
        scaled = tl.where(scaled < 0, 0.0, tl.where(scaled > 1, 1.0, scaled))
        tl.store(ties + program * 2, tl.sum((inside & (value == low)).to(tl.int32), 0).to(A))
        tl.store(ties + program * 2 + 1, tl.sum((inside & (value == high)).to(tl.int32), 0).to(A))
    tl.store(out + image * pixels + pixel, scaled, mask=inside)


@triton.jit
def _pair_sums(pairs, count, A: tl.constexpr, BLOCK: tl.constexpr):
    """Column sums of [count, 2]."""
    first, second = tl.zeros([BLOCK], A), tl.zeros([BLOCK], A)
    for start in range(0, count, BLOCK):
        row = start + tl.arange(0, BLOCK)
        at = pairs + row.to(tl.int64) * 2
        first += tl.load(at, mask=row < count, other=0.0)
        second += tl.load(at + 1, mask=row < count, other=0.0)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def target_ties_kernel(ties, bounds, tiles, A: tl.constexpr, BLOCK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    low, high = _pair_sums(ties + image * tiles * 2, tiles, A, BLOCK)
    tl.store(bounds + image * 4 + 2, low)
    tl.store(bounds + image * 4 + 3, high)


# ---- backward -------------------------------------------------------------------------------------------------------


@triton.jit
def _unclamped(raw, low, divisor):
    scaled = divide(raw - low, tl.broadcast_to(divisor, raw.shape))
    return (scaled >= 0) & (scaled <= 1)


@triton.jit
def target_sums_kernel(
    grad,
    out,
    raw,  # [B, pixels], raw for percentile, else None
    bounds,
    partial,  # [B, 4], [B, tiles, 2]
    pixels,
    tiles,
    floor: tl.float64,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Σ grad and Σ grad·out over the pixels that are not clamped, per tile."""
    program = tl.program_id(0).to(tl.int64)
    image = program // tiles
    pixel = program % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    at = image * pixels + pixel
    slope = load(grad + at, inside, A)
    if raw is not None:
        low, _, divisor = _range(bounds + image * 4, floor, A)
        slope = tl.where(_unclamped(load(raw + at, inside, A), low, divisor), slope, 0.0)
    tl.store(partial + program * 2, tl.sum(slope, 0))
    tl.store(partial + program * 2 + 1, tl.sum(slope * load(out + at, inside, A), 0))


@triton.jit
def target_shares_kernel(partial, bounds, shares, tiles, floor: tl.float64, A: tl.constexpr, BLOCK: tl.constexpr):
    """What each pixel that equals a bound adds to its gradient: shares[b] = (low, high).

    d out / d low = (out - 1) / range, d out / d high = -out / range; below the floor there is no range.
    """
    image = tl.program_id(0).to(tl.int64)
    total, product = _pair_sums(partial + image * tiles * 2, tiles, A, BLOCK)
    low, high, divisor = _range(bounds + image * 4, floor, A)
    live = high - low >= tl.full((), floor, A)
    lows, highs = tl.load(bounds + image * 4 + 2), tl.load(bounds + image * 4 + 3)
    of_low = (tl.where(live, product, 0.0) - total) / (divisor * tl.where(lows > 0, lows, 1.0))
    of_high = -product / (divisor * tl.where(highs > 0, highs, 1.0))
    tl.store(shares + image * 2, tl.where(lows > 0, of_low, 0.0))
    tl.store(shares + image * 2 + 1, tl.where(live & (highs > 0), of_high, 0.0))


@triton.jit
def _raw_gradient(
    grad, out, raw, bounds, shares, image, at, inside, floor, scale, NORMALIZE: tl.constexpr, A: tl.constexpr
):
    """The gradient of the raw map at the elements `at`."""
    upstream = load(grad + at, inside, A)
    if NORMALIZE == SCALE:
        slope = divide(tl.full((), 1.0, A), tl.full((), scale, A))
        upstream = tl.where(load(out + at, inside, A) < 1, upstream * slope, 0.0)
    elif NORMALIZE != NONE:
        low, high, divisor = _range(bounds + image * 4, floor, A)
        of_low, of_high = tl.load(shares + image * 2), tl.load(shares + image * 2 + 1)
        upstream = upstream * divide(tl.full((), 1.0, A), divisor)
        if NORMALIZE == MINMAX:
            value = load(out + at, inside, A)
            is_low, is_high = value == 0, value == 1
        else:
            value = load(raw + at, inside, A)
            is_low, is_high = value == low, value == high
            upstream = tl.where(_unclamped(value, low, divisor), upstream, 0.0)
        upstream += tl.where(is_low, of_low, 0.0) + tl.where(is_high, of_high, 0.0)
    return upstream


@triton.jit
def target_image_bwd_kernel(
    grad,
    out,
    raw,
    bounds,
    shares,  # raw, shares: None where NORMALIZE needs none
    reference,
    distorted,
    grad_reference,
    grad_distorted,  # [B, 3, pixels], gradients may be None
    pixels,
    tiles,
    weight: tl.float64,
    floor: tl.float64,
    scale: tl.float64,
    NORMALIZE: tl.constexpr,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    image = program // tiles
    pixel = program % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    upstream = _raw_gradient(
        grad, out, raw, bounds, shares, image, image * pixels + pixel, inside, floor, scale, NORMALIZE, A
    )
    upstream = upstream * tl.full((), weight, A)
    for channel in tl.static_range(3):
        at = (image * 3 + channel) * pixels + pixel
        difference = load(reference + at, inside, A) - load(distorted + at, inside, A)
        slope = tl.where(difference > 0, upstream, tl.where(difference < 0, -upstream, 0.0))
        if grad_reference is not None:
            store(grad_reference + at, slope, inside)
        if grad_distorted is not None:
            store(grad_distorted + at, -slope, inside)


@triton.jit
def target_columns_bwd_kernel(
    grad,
    out,
    raw,
    bounds,
    shares,
    reduced,  # [B, height, w]
    height,
    width,
    w,
    span,
    column_blocks,
    alpha: tl.float64,
    floor: tl.float64,
    scale: tl.float64,
    NORMALIZE: tl.constexpr,
    A: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Horizontal half of the adjoint of the upsampling: each low-resolution column gathers the pixels that read it."""
    program = tl.program_id(0).to(tl.int64)
    row = program // column_blocks  # of all images
    column = (program % column_blocks).to(tl.int32) * BLOCK_J + tl.arange(0, BLOCK_J)
    begin, end = touching(column, width, w)
    end = tl.where(column < w, end, begin)
    total = tl.zeros([BLOCK_J, BLOCK_X], A)
    for start in range(0, span, BLOCK_X):
        x = begin[:, None] + (start + tl.arange(0, BLOCK_X))[None, :]
        inside = x < end[:, None]
        upstream = _raw_gradient(
            grad, out, raw, bounds, shares, row // height, row * width + x, inside, floor, scale, NORMALIZE, A
        )
        weight = tap_weight(column[:, None], x, width, w, A)
        total += tl.where(inside, upstream * weight, 0.0)
    sums = tl.sum(total, 1) * tl.full((), 1 - alpha, A)
    tl.store(reduced + row * w + column, sums, mask=column < w)


@triton.jit
def target_factors_bwd_kernel(
    reduced,  # [B, height, w]
    moments,  # [B, 3, h, w]
    factors,  # [B, 3, h, w]: grad f = other·g + own_f·f, grad g = other·f + own_g·g
    height,
    h,
    w,
    span,
    column_blocks,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Vertical half of the adjoint, then the three factors of the cosine's gradient."""
    program = tl.program_id(0).to(tl.int64)
    row = program // column_blocks
    image, cell = row // h, row % h
    column = (program % column_blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    inside = column < w
    begin, end = touching(cell, height, h)
    grad = tl.zeros([BLOCK], A)
    for offset in range(span):
        y = begin + offset
        weight = tap_weight(cell, y, height, h, A)
        grad += weight * load(reduced + (image * height + y) * w + column, inside & (y + 0 * column < end), A)
    pixels = tl.full((), h, tl.int64) * w
    at = image * 3 * pixels + cell * w + column
    dot, ff = load(moments + at, inside, A), load(moments + at + pixels, inside, A)
    gg = load(moments + at + 2 * pixels, inside, A)
    safe = ff * gg > COSINE_EPS
    norm = root(tl.where(safe, ff * gg, 1.0))
    cosine = divide(dot, norm)
    live = safe & (cosine <= 1)  # not where the distance was clamped
    tl.store(factors + at, tl.where(live, -grad / norm, 0.0), mask=inside)
    tl.store(factors + at + pixels, tl.where(live, grad * cosine / tl.where(live, ff, 1.0), 0.0), mask=inside)
    tl.store(factors + at + 2 * pixels, tl.where(live, grad * cosine / tl.where(live, gg, 1.0), 0.0), mask=inside)


@triton.jit
def target_feature_bwd_kernel(
    f,
    g,
    factors,
    grad_f,
    grad_g,  # gradients may be None
    channels,
    pixels,
    channel_blocks,
    pixel_blocks,
    A: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    pixel = program % pixel_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    rest = program // pixel_blocks
    channel = rest % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    image = rest // channel_blocks
    inside = pixel < pixels
    mask = (channel < channels)[:, None] & inside[None, :]
    at = ((image * channels + channel) * pixels)[:, None] + pixel[None, :]
    x, y = load(f + at, mask, A), load(g + at, mask, A)
    factors += image * 3 * pixels + pixel
    other = load(factors, inside, A)[None, :]
    if grad_f is not None:
        own = load(factors + pixels, inside, A)[None, :]
        store(grad_f + at, other * y + own * x, mask)
    if grad_g is not None:
        own = load(factors + 2 * pixels, inside, A)[None, :]
        store(grad_g + at, other * x + own * y, mask)


# ---- launches -------------------------------------------------------------------------------------------------------


def _cosine(f: Tensor, g: Tensor, compute: torch.dtype) -> tuple[Tensor, Tensor]:
    batch, channels, h, w = f.shape
    moments = f.new_empty((batch, 3, h, w), dtype=compute)
    distance = f.new_empty((batch, h, w), dtype=compute)
    blocks = config.ceil_div(h * w, config.TARGET_FEATURE_PIXELS)
    target_cosine_kernel[(batch * blocks,)](
        f,
        g,
        moments,
        distance,
        channels,
        h * w,
        blocks,
        A=triton_type(compute),
        BLOCK_C=config.TARGET_FEATURE_CHANNELS,
        BLOCK_P=config.TARGET_FEATURE_PIXELS,
        num_warps=config.WARPS,
        enable_fp_fusion=False,
    )
    return moments, distance


def _order_statistics(raw: Tensor, percentile: float, bounds: Tensor) -> None:
    """bounds[:, :2] = the values of the nearest ranks of 1 - percentile and percentile; NaN if the map has one."""
    flat = raw.flatten(1)
    above = flat.shape[1] - int(percentile * (flat.shape[1] - 1) + 0.5)  # values from the upper rank on
    bounds[:, 0] = flat.topk(above, largest=False).values[:, -1]
    bounds[:, 1] = flat.topk(above).values[:, -1]
    bounds[:, :2].masked_fill_(flat.isnan().any(1, keepdim=True), float("nan"))


def degradation_target(
    reference: Tensor,
    distorted: Tensor,
    reference_features: Tensor | None,
    distorted_features: Tensor | None,
    alpha: float,
    normalize: int,
    floor: float,
    percentile: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `finpercep::degradation_target`: (map, bounds, moments, raw)."""
    reference, distorted = reference.contiguous(), distorted.contiguous()
    batch, _, height, width = reference.shape
    compute = accumulation_type(reference.dtype)
    A = triton_type(compute)
    out = reference.new_empty((batch, 1, height, width), dtype=compute)
    bounds = reference.new_empty((batch, 4), dtype=compute)
    raw = torch.empty_like(out) if normalize == PERCENTILE else out.new_empty(0)
    h = w = 1
    moments, distance = out.new_empty(0), None
    if reference_features is not None and distorted_features is not None:
        h, w = reference_features.shape[2:]
        moments = out.new_empty((batch, 3, h, w))
        if batch > 0:
            moments, distance = _cosine(reference_features.contiguous(), distorted_features.contiguous(), compute)
    if batch == 0:
        return out, bounds, moments, raw

    rows, columns = config.pixel_tile(width)
    column_blocks = config.ceil_div(width, columns)
    tiles = config.ceil_div(height, rows) * column_blocks
    target = raw if normalize == PERCENTILE else out
    partial = out.new_empty((batch, tiles, 4)) if normalize == MINMAX else None
    target_raw_kernel[(batch * tiles,)](
        reference,
        distorted,
        distance,
        target,
        bounds,
        partial,
        height,
        width,
        h,
        w,
        column_blocks,
        tiles,
        alpha,
        scale,
        NORMALIZE=normalize,
        IS_BYTE=reference.dtype == torch.uint8,
        A=A,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=config.WARPS,
    )
    if normalize in (NONE, SCALE):
        return out, bounds, moments, raw
    if normalize == MINMAX:
        target_bounds_kernel[(batch,)](
            partial, bounds, tiles, floor, A=A, BLOCK=config.PARTIALS, num_warps=config.WARPS
        )
    else:
        _order_statistics(raw, percentile, bounds)
    pixels = height * width
    blocks = config.ceil_div(pixels, config.TARGET_TILE)
    ties = out.new_empty((batch, blocks, 2)) if normalize == PERCENTILE else None
    target_rescale_kernel[(batch * blocks,)](
        target,
        out,
        bounds,
        ties,
        pixels,
        blocks,
        floor,
        A=A,
        BLOCK=config.TARGET_TILE,
        num_warps=config.WARPS,
    )
    if ties is not None:
        target_ties_kernel[(batch,)](ties, bounds, blocks, A=A, BLOCK=config.PARTIALS, num_warps=config.WARPS)
    return out, bounds, moments, raw


def _bound_shares(grad: Tensor, out: Tensor, raw: Tensor | None, bounds: Tensor, floor: float, pixels: int) -> Tensor:
    batch, A = out.shape[0], triton_type(out.dtype)
    blocks = config.ceil_div(pixels, config.TARGET_TILE)
    partial, shares = out.new_empty((batch, blocks, 2)), out.new_empty((batch, 2))
    target_sums_kernel[(batch * blocks,)](
        grad,
        out,
        raw,
        bounds,
        partial,
        pixels,
        blocks,
        floor,
        A=A,
        BLOCK=config.TARGET_TILE,
        num_warps=config.WARPS,
    )
    target_shares_kernel[(batch,)](
        partial, bounds, shares, blocks, floor, A=A, BLOCK=config.PARTIALS, num_warps=config.WARPS
    )
    return shares


def degradation_target_backward(
    grad: Tensor,
    reference: Tensor,
    distorted: Tensor,
    reference_features: Tensor | None,
    distorted_features: Tensor | None,
    out: Tensor,
    bounds: Tensor,
    moments: Tensor,
    raw: Tensor,
    alpha: float,
    normalize: int,
    floor: float,
    scale: float,
    needs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `finpercep::degradation_target_backward`: four gradients, empty where the bit of `needs` is not set."""
    sources = (reference, distorted, reference_features, distorted_features)
    first, second, third, fourth = (
        (reference if s is None else s).new_empty((0,) if s is None or not needs >> i & 1 else s.shape)
        for i, s in enumerate(sources)
    )
    grads = (first, second, third, fourth)
    batch, _, height, width = reference.shape
    if batch == 0 or needs == 0:
        return grads
    wanted = [g if needs >> i & 1 else None for i, g in enumerate(grads)]
    grad, out = grad.contiguous(), out.contiguous()
    A = triton_type(out.dtype)
    pixels = height * width
    kept = raw.contiguous() if normalize == PERCENTILE else None
    bounded = normalize in (MINMAX, PERCENTILE)
    shares = _bound_shares(grad, out, kept, bounds, floor, pixels) if bounded else None
    upstream = (grad, out, kept, bounds, shares)
    if needs & 3:
        blocks = config.ceil_div(pixels, config.TARGET_TILE)
        weight = (1.0 if reference_features is None else alpha) / 3
        target_image_bwd_kernel[(batch * blocks,)](
            *upstream,
            reference.contiguous(),
            distorted.contiguous(),
            wanted[0],
            wanted[1],
            pixels,
            blocks,
            weight,
            floor,
            scale,
            NORMALIZE=normalize,
            A=A,
            BLOCK=config.TARGET_TILE,
            num_warps=config.WARPS,
        )
    if needs & 12 and reference_features is not None and distorted_features is not None:
        f, g = reference_features.contiguous(), distorted_features.contiguous()
        factors = _feature_factors(upstream, moments, alpha, normalize, floor, scale)
        _feature_gradients(f, g, factors, wanted[2], wanted[3])
    return grads


def _feature_factors(
    upstream: tuple[Tensor | None, ...],
    moments: Tensor,
    alpha: float,
    normalize: int,
    floor: float,
    scale: float,
) -> Tensor:
    """Adjoint of the upsampling, and the factors of the cosine's gradient. (B, 3, h, w)"""
    out = upstream[1]
    assert out is not None
    batch, _, height, width = out.shape
    h, w = moments.shape[2:]
    A = triton_type(out.dtype)
    span = touching_span(width, w)
    block_x = min(config.power_of_two(span), config.TARGET_SUPPORT)
    block_j = min(config.TARGET_TILE // block_x, config.power_of_two(w))
    column_blocks = config.ceil_div(w, block_j)
    reduced = out.new_empty((batch, height, w))
    target_columns_bwd_kernel[(batch * height * column_blocks,)](
        *upstream,
        reduced,
        height,
        width,
        w,
        span,
        column_blocks,
        alpha,
        floor,
        scale,
        NORMALIZE=normalize,
        A=A,
        BLOCK_J=block_j,
        BLOCK_X=block_x,
        num_warps=config.WARPS,
    )
    factors = torch.empty_like(moments, memory_format=torch.contiguous_format)
    block = min(config.power_of_two(w), config.TARGET_TILE)
    column_blocks = config.ceil_div(w, block)
    target_factors_bwd_kernel[(batch * h * column_blocks,)](
        reduced,
        moments.contiguous(),
        factors,
        height,
        h,
        w,
        touching_span(height, h),
        column_blocks,
        A=A,
        BLOCK=block,
        num_warps=config.WARPS,
    )
    return factors


def _feature_gradients(f: Tensor, g: Tensor, factors: Tensor, grad_f: Tensor | None, grad_g: Tensor | None) -> None:
    batch, channels, h, w = f.shape
    channel_blocks = config.ceil_div(channels, config.TARGET_FEATURE_CHANNELS)
    pixel_blocks = config.ceil_div(h * w, config.TARGET_FEATURE_PIXELS)
    target_feature_bwd_kernel[(batch * channel_blocks * pixel_blocks,)](
        f,
        g,
        factors,
        grad_f,
        grad_g,
        channels,
        h * w,
        channel_blocks,
        pixel_blocks,
        A=triton_type(factors.dtype),
        BLOCK_C=config.TARGET_FEATURE_CHANNELS,
        BLOCK_P=config.TARGET_FEATURE_PIXELS,
        num_warps=config.WARPS,
    )
