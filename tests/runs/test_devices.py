"""What a process takes when it takes a device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from finpercep.runs.devices import take_full_float32, uploaded
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


def test_what_is_uploaded_is_pinned_first(monkeypatch):
    """Else the host waits; what is there already, or goes nowhere, is not touched."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **options: asked.append((device, options)) or self)
    values = torch.ones(2)
    assert uploaded(values, "cuda:0") is values
    assert uploaded(values, "cpu") is values
    assert uploaded(torch.ones(2, device="meta"), "cuda:0").is_meta
    assert asked == ["pinned", ("cuda:0", {"non_blocking": True}), ("cpu", {}), ("cuda:0", {})]
