"""Tensors of more than 2³¹ elements whose memory is only reserved, for tests of the last block of a kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

HUGE = 2**31


def reserve(*shape: int, dtype: torch.dtype = torch.bfloat16, tail: int = 5000) -> Tensor:
    """Untouched memory, but for random numbers in [0, 1) at its end."""
    try:
        tensor = torch.empty(shape, dtype=dtype)
    except RuntimeError as error:
        pytest.skip(f"no address space for {shape}: {error}")
    assert tensor.numel() > HUGE
    values = torch.rand(tail, generator=torch.Generator().manual_seed(tail))
    tensor.view(-1)[-tail:] = (values * 255 if dtype == torch.uint8 else values).to(dtype)
    return tensor
