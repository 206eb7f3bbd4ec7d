"""What a process takes when it takes a device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from finpercep.runs.devices import take_full_float32
from finpercep.runs.ranks import own_device


@pytest.fixture(autouse=True)
def tf32() -> Iterator[None]:
    """Torch's default, before and afterwards."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("take", [take_full_float32, own_device])
def test_float32_is_float32_on_cuda(take):
    take("cpu")
    assert torch.backends.cudnn.allow_tf32
    take("cuda:0")
    assert not torch.backends.cudnn.allow_tf32
