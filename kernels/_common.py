"""What the kernels share: conversions, arithmetic that rounds as PyTorch does, resampling weights."""

import os

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def accumulation_type(*dtypes: torch.dtype) -> torch.dtype:
    """What a kernel computes in: fp64 if any of its inputs is, else fp32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def triton_type(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def widen(x, A: tl.constexpr):
    """To the accumulation type, through fp32: the interpreter has no other way out of bfloat16."""
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    return x.to(A)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """To the type of an output, rounded to nearest even."""
    if dtype == tl.bfloat16:
        x = x.to(tl.float32)
        if INTERPRETED:  # its own conversion loses carries: leave it nothing to round
            bits = x.to(tl.uint32, bitcast=True)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            x = tl.where(x == x, rounded.to(tl.uint32).to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def load(pointers, mask, A: tl.constexpr):
    return widen(tl.load(pointers, mask=mask, other=0), A)


@triton.jit
def store(pointers, values, mask):
    tl.store(pointers, narrow(values, pointers.dtype.element_ty), mask=mask)


@triton.jit
def divide(a, b):
    """Correctly rounded; `/` is not in fp32."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def root(x):
    """Correctly rounded; `tl.sqrt` is not in fp32."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def is_finite(x):
    return x - x == 0


@triton.jit
def ceil_quotient(a, b):
    return (a + b - 1) // b


@triton.jit
def window(i, cells, size):
    """Adaptive pooling: cell i of `cells` covers [begin, end) of `size`. 64-bit: the product may be large."""
    i = i.to(tl.int64)
    return i * size // cells, ceil_quotient((i + 1) * size, cells)


@triton.jit
def bilinear_tap(i, outputs, inputs, A: tl.constexpr):
    """Output i of `outputs` over `inputs` reads (lower, upper) with weights 1 - frac and frac (align_corners=False)."""
    ratio = divide(tl.full((), inputs, A), tl.full((), outputs, A))
    position = (i.to(A) + 0.5) * ratio - 0.5
    position = tl.where(position < 0, 0.0, position)
    lower = tl.minimum(position.to(tl.int32), inputs - 1)
    frac = position - lower.to(A)
    frac = tl.where(frac > 1, 1.0, frac)
    return lower, tl.minimum(lower + 1, inputs - 1), frac


@triton.jit
def touching(x, outputs, inputs):
    """[begin, end) of the outputs that may read input x: a superset, in which the taps tell."""
    x = x.to(tl.int64)
    begin = tl.maximum((x - 1) * outputs // inputs - 1, 0)
    end = tl.minimum(ceil_quotient((x + 2) * outputs, inputs) + 1, outputs)
    return tl.where(x == 0, 0, begin), tl.where(x >= inputs - 1, outputs, end)


def touching_span(outputs: int, inputs: int) -> int:
    """An upper bound of `end - begin` of `touching`."""
    return min(outputs, 3 * outputs // inputs + 5)


@triton.jit
def tap_weight(x, i, outputs, inputs, A: tl.constexpr):
    """The weight of input x in output i."""
    lower, upper, frac = bilinear_tap(i, outputs, inputs, A)
    return tl.where(lower == x, 1 - frac, 0.0) + tl.where(upper == x, frac, 0.0)
