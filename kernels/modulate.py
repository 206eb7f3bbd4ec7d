"""modulate, Eq. 7: the map is resampled, the features modulated and pooled in one launch (two with a large pool)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from finpercep.kernels import _config as config
from finpercep.kernels._common import (
    accumulation_type,
    bilinear_tap,
    ceil_quotient,
    divide,
    load,
    store,
    tap_weight,
    touching,
    touching_span,
    triton_type,
)

BILINEAR = 1  # the index in finpercep.ops.modulate.RESAMPLES
# The indices in finpercep.ops.modulate.GATES: d, 1 - d, 1 + d
DEGRADATION, QUALITY, RESIDUAL = (tl.constexpr(i) for i in range(3))
# POOL: what the tile becomes
NO_POOL, WHOLE, PARTIAL = 0, 1, 2


@triton.jit
def _gate_weight(d, GATE: tl.constexpr):
    if GATE == QUALITY:
        d = 1 - d
    elif GATE == RESIDUAL:
        d = 1 + d
    return d


@triton.jit
def _window(i, cells, size, WIDE: tl.constexpr):
    """Adaptive pooling: cell i of `cells` covers [begin, end) of `size`. In 32 bits, unless a product is too large."""
    if WIDE:
        i = i.to(tl.int64)
    return i * size // cells, ceil_quotient((i + 1) * size, cells)


@triton.jit
def _area(
    degradation,
    cell_y,
    cell_x,
    valid,
    h,
    w,
    height,
    width,
    span_y,
    span_x,
    WIDE: tl.constexpr,
    A: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Mean of the map over the window of each cell. [BLOCK_N]"""
    y_begin, y_end = _window(cell_y, h, height, WIDE)
    x_begin, x_end = _window(cell_x, w, width, WIDE)
    degradation += y_begin.to(tl.int64) * width + x_begin
    rows, columns = y_end - y_begin, x_end - x_begin
    pixel = tl.arange(0, BLOCK_Y * BLOCK_X)
    total = tl.zeros([BLOCK_N, BLOCK_Y * BLOCK_X], A)
    for dy in range(0, span_y, BLOCK_Y):
        y = dy + pixel // BLOCK_X
        inside = valid[:, None] & (y[None, :] < rows[:, None])
        for dx in range(0, span_x, BLOCK_X):
            x = dx + pixel % BLOCK_X
            mask = inside & (x[None, :] < columns[:, None])
            total += load(degradation[:, None] + (y.to(tl.int64) * width + x)[None, :], mask, A)
    return divide(tl.sum(total, 1), ((y_end - y_begin) * (x_end - x_begin)).to(A))


@triton.jit
def _bilinear(degradation, cell_y, cell_x, valid, h, w, height, width, A: tl.constexpr):
    top, bottom, down = bilinear_tap(cell_y, h, height, A)
    left, right, across = bilinear_tap(cell_x, w, width, A)
    upper, lower = degradation + top.to(tl.int64) * width, degradation + bottom.to(tl.int64) * width
    above = (1 - across) * load(upper + left, valid, A) + across * load(upper + right, valid, A)
    below = (1 - across) * load(lower + left, valid, A) + across * load(lower + right, valid, A)
    return (1 - down) * above + down * below


@triton.jit
def modulate_fwd_kernel(
    features,  # [B, tokens, channels]
    degradation,  # [B, 1, height, width]
    d,  # [B, tokens]
    out,  # [B, tokens, channels], or [B, channels], or [B, blocks, channels]
    tokens,
    channels,
    h,
    w,
    height,
    width,
    span_y,
    span_x,
    blocks,
    GATE: tl.constexpr,
    IS_BILINEAR: tl.constexpr,
    POOL: tl.constexpr,
    WIDE: tl.constexpr,
    A: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    image = program // blocks
    token = (program % blocks).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = token < tokens
    degradation += image * height * width
    cell_y, cell_x = token // w, token % w
    if IS_BILINEAR:
        value = _bilinear(degradation, cell_y, cell_x, valid, h, w, height, width, A)
    else:
        value = _area(
            degradation, cell_y, cell_x, valid, h, w, height, width, span_y, span_x, WIDE, A, BLOCK_N, BLOCK_Y, BLOCK_X
        )
    tl.store(d + image * tokens + token, value, mask=valid)
    weight = _gate_weight(value, GATE)

    rows = (image * tokens + token) * channels
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        mask = valid[:, None] & (channel < channels)[None, :]
        tile = load(features + rows[:, None] + channel[None, :], mask, A) * weight[:, None]
        if POOL == 0:
            store(out + rows[:, None] + channel[None, :], tile, mask)
        else:
            total = tl.sum(tile, 0)
            if POOL == 1:  # all tokens are here
                total = divide(total, tl.full((), tokens, A))
            store(out + program * channels + channel, total, channel < channels)


@triton.jit
def modulate_pool_kernel(
    partial,  # [B, blocks, channels]
    out,  # [B, channels]
    channels,
    blocks,
    tokens,
    channel_blocks,
    A: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0)
    image = (program // channel_blocks).to(tl.int64)
    channel = program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    total = tl.zeros([BLOCK_S, BLOCK_C], A)
    for start in range(0, blocks, BLOCK_S):
        block = start + tl.arange(0, BLOCK_S)
        mask = (block < blocks)[:, None] & inside[None, :]
        rows = (image * blocks + block) * channels
        total += load(partial + rows[:, None] + channel[None, :], mask, A)
    mean = divide(tl.sum(total, 0), tl.full((), tokens, A))
    store(out + image * channels + channel, mean, inside)


@triton.jit
def modulate_bwd_kernel(
    grad,  # like the output
    features,  # [B, tokens, channels]
    d,  # [B, tokens]
    grad_features,  # like features, or None
    grad_d,  # like d, or None
    tokens,
    channels,
    blocks,
    GATE: tl.constexpr,
    POOL: tl.constexpr,
    A: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    image = program // blocks
    token = (program % blocks).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = token < tokens
    weight = _gate_weight(load(d + image * tokens + token, valid, A), GATE)
    rows = (image * tokens + token) * channels
    product = tl.zeros([BLOCK_N, BLOCK_C], A)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = channel < channels
        mask = valid[:, None] & inside[None, :]
        if POOL:
            one = load(grad + image * channels + channel, inside, A)
            upstream = divide(one, tl.full((), tokens, A))[None, :]
        else:
            upstream = load(grad + rows[:, None] + channel[None, :], mask, A)
        if grad_features is not None:
            store(grad_features + rows[:, None] + channel[None, :], upstream * weight[:, None], mask)
        if grad_d is not None:
            product += upstream * load(features + rows[:, None] + channel[None, :], mask, A)
    if grad_d is not None:
        slope = tl.sum(product, 1)
        if GATE == QUALITY:
            slope = -slope
        tl.store(grad_d + image * tokens + token, slope, mask=valid)


@triton.jit
def modulate_map_bwd_kernel(
    grad_d,  # [B, h, w]
    grad_map,  # [B, 1, height, width]
    h,
    w,
    height,
    width,
    span_y,
    span_x,
    row_blocks,
    column_blocks,
    IS_BILINEAR: tl.constexpr,
    WIDE: tl.constexpr,
    A: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gathers: each pixel adds up the cells that read it."""
    program = tl.program_id(0).to(tl.int64)
    image = program // (row_blocks * column_blocks)
    tile = (program % (row_blocks * column_blocks)).to(tl.int32)
    y = tile // column_blocks * ROWS + tl.arange(0, ROWS)
    x = tile % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    grad_d += image * h * w
    if IS_BILINEAR:
        first_y, last_y = touching(y, h, height)
        first_x, last_x = touching(x, w, width)
    else:
        first_y, last_y = _window(y, height, h, WIDE)  # the cells whose windows contain y
        first_x, last_x = _window(x, width, w, WIDE)
    last_y, last_x = tl.where(y < height, last_y, first_y), tl.where(x < width, last_x, first_x)
    total = tl.zeros([ROWS, COLUMNS], A)
    for dy in range(span_y):
        cell_y = first_y + dy
        if IS_BILINEAR:
            share_y = tap_weight(y, cell_y, h, height, A)
        else:
            y_begin, y_end = _window(cell_y, h, height, WIDE)
            share_y = divide(tl.full([ROWS], 1.0, A), (y_end - y_begin).to(A))
        for dx in range(span_x):
            cell_x = first_x + dx
            mask = (cell_y < last_y)[:, None] & (cell_x < last_x)[None, :]
            grad = load(grad_d + (cell_y * w)[:, None] + cell_x[None, :], mask, A)
            if IS_BILINEAR:
                share_x = tap_weight(x, cell_x, w, width, A)
            else:
                x_begin, x_end = _window(cell_x, w, width, WIDE)
                share_x = divide(tl.full([COLUMNS], 1.0, A), (x_end - x_begin).to(A))
            total += grad * share_y[:, None] * share_x[None, :]
    mask = (y < height)[:, None] & (x < width)[None, :]
    pixels = (image * height + y)[:, None] * width + x[None, :]
    store(grad_map + pixels, total, mask)


def _is_wide(h: int, w: int, height: int, width: int) -> bool:
    """Whether products of a side of the grid and one of the map, or of the map's sides, may exceed 32 bits."""
    return max((h + 2) * (height + 2), (w + 2) * (width + 2), (height + 2) * (width + 2)) >= 2**31


def _window_span(cells: int, size: int) -> int:
    """An upper bound of the length of an adaptive window."""
    return size // cells if size % cells == 0 else size // cells + 2


def _tile(batch: int, tokens: int) -> tuple[int, int, int]:
    """(tokens, channels) of one tile and the number of tiles per image."""
    rows = config.MODULATE_TOKENS[-1]
    for rows in config.MODULATE_TOKENS:
        if batch * config.ceil_div(tokens, rows) >= config.MODULATE_PROGRAMS:
            break
    columns = max(config.MODULATE_TILE // rows, config.MODULATE_CHANNELS)
    return rows, columns, config.ceil_div(tokens, rows)


def modulate(
    features: Tensor, degradation: Tensor, h: int, w: int, gate: int, resample: int, pool: bool
) -> tuple[Tensor, Tensor]:
    """See `finpercep::modulate`: (output, resampled map)."""
    features, degradation = features.contiguous(), degradation.contiguous()
    batch, tokens, channels = features.shape
    height, width = degradation.shape[2:]
    compute = accumulation_type(features.dtype)
    d = features.new_empty((batch, tokens), dtype=compute)
    out = features.new_empty((batch, channels) if pool else features.shape)
    if batch == 0:
        return out, d
    rows, columns, blocks = _tile(batch, tokens)
    columns = min(columns, config.power_of_two(channels))
    two_stages = pool and blocks > 1
    target = features.new_empty((batch, blocks, channels), dtype=compute) if two_stages else out
    span_y, span_x = _window_span(h, height), _window_span(w, width)
    window_x = min(config.power_of_two(span_x), config.MODULATE_WINDOW)
    modulate_fwd_kernel[(batch * blocks,)](
        features,
        degradation,
        d,
        target,
        tokens,
        channels,
        h,
        w,
        height,
        width,
        span_y,
        span_x,
        blocks,
        GATE=gate,
        IS_BILINEAR=resample == BILINEAR,
        POOL=PARTIAL if two_stages else WHOLE if pool else NO_POOL,
        WIDE=_is_wide(h, w, height, width),
        A=triton_type(compute),
        BLOCK_N=rows,
        BLOCK_C=columns,
        BLOCK_Y=min(config.power_of_two(span_y), config.MODULATE_WINDOW // window_x),
        BLOCK_X=window_x,
        num_warps=config.MODULATE_WARPS,
    )
    if two_stages:
        columns = 64
        channel_blocks = config.ceil_div(channels, columns)
        modulate_pool_kernel[(batch * channel_blocks,)](
            target,
            out,
            channels,
            blocks,
            tokens,
            channel_blocks,
            A=triton_type(compute),
            BLOCK_S=16,
            BLOCK_C=columns,
            num_warps=config.WARPS,
        )
    return out, d


def modulate_backward(
    grad: Tensor,
    features: Tensor,
    degradation: Tensor,
    d: Tensor,
    h: int,
    w: int,
    gate: int,
    resample: int,
    pool: bool,
    need_features: bool,
    need_map: bool,
) -> tuple[Tensor, Tensor]:
    """See `finpercep::modulate_backward`: gradients of features and map, empty where not needed."""
    grad, features, d = grad.contiguous(), features.contiguous(), d.contiguous()
    batch, tokens, channels = features.shape
    height, width = degradation.shape[2:]
    compute = triton_type(d.dtype)
    grad_features = features.new_empty(features.shape if need_features else (0,))
    grad_map = degradation.new_empty(degradation.shape if need_map else (0,))
    if batch == 0 or not (need_features or need_map):
        return grad_features, grad_map
    grad_d = torch.empty_like(d) if need_map else None
    rows, columns, blocks = _tile(batch, tokens)
    modulate_bwd_kernel[(batch * blocks,)](
        grad,
        features,
        d,
        grad_features if need_features else None,
        grad_d,
        tokens,
        channels,
        blocks,
        GATE=gate,
        POOL=pool,
        A=compute,
        BLOCK_N=rows,
        BLOCK_C=min(columns, config.power_of_two(channels)),
        num_warps=config.MODULATE_WARPS,
    )
    if need_map:
        bilinear = resample == BILINEAR
        rows, columns = config.pixel_tile(width)
        row_blocks, column_blocks = config.ceil_div(height, rows), config.ceil_div(width, columns)
        span = touching_span if bilinear else _cover_span
        modulate_map_bwd_kernel[(batch * row_blocks * column_blocks,)](
            grad_d,
            grad_map,
            h,
            w,
            height,
            width,
            span(h, height),
            span(w, width),
            row_blocks,
            column_blocks,
            IS_BILINEAR=bilinear,
            WIDE=_is_wide(h, w, height, width),
            A=compute,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=config.WARPS,
        )
    return grad_features, grad_map


def _cover_span(cells: int, size: int) -> int:
    """An upper bound of the number of windows that contain one pixel."""
    return _window_span(size, cells) if size % cells else 1
