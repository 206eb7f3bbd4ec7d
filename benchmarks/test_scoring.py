"""Score and map of one 512×512 photo by finpercep-tiny: beside the score alone by pyiqa's PIQE, and inside
`torch.compile` with Eq. 7 as operator and as definition."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from finpercep import RewardModel, ops
from finpercep.models import head

ROUNDS, WARMUP = 30, 3


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """(1, 3, 512, 512) in [0, 1]; scikit-image carries it."""
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    return torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("executor", ["PIQE", "finpercep-tiny"])
def test_scoring(benchmark, photo: Tensor, executor: str) -> None:  # type: ignore[no-untyped-def]
    if executor == "PIQE":
        pyiqa = pytest.importorskip("pyiqa", reason="pyiqa is not installed")
        metric = pyiqa.create_metric("piqe", device="cpu")
        result = benchmark.pedantic(metric, (photo,), rounds=ROUNDS, warmup_rounds=WARMUP)
        assert result.isfinite().all()
    else:
        model = RewardModel.from_pretrained("finpercep-tiny")
        output = benchmark.pedantic(model.score, (photo,), rounds=ROUNDS, warmup_rounds=WARMUP)
        assert output.map.shape == (1, 1, 512, 512)
    benchmark.extra_info.update(operator="finpercep-tiny score+map / PIQE score", executor=executor)


@pytest.mark.parametrize("executor", ["definition", "operator"])
def test_compiled_model(  # type: ignore[no-untyped-def]
    benchmark, photo: Tensor, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator is a fusion barrier for the compiler: does the whole model lose by it?"""
    backend = {"definition": "reference", "operator": "cpp"}[executor]
    monkeypatch.setattr(head, "ops", SimpleNamespace(modulate=partial(ops.modulate, backend=backend)))
    torch._dynamo.reset()
    model = torch.compile(RewardModel.from_pretrained("finpercep-tiny").eval(), dynamic=False)
    with torch.no_grad():
        output = benchmark.pedantic(model, (photo,), rounds=ROUNDS, warmup_rounds=WARMUP)
    assert output.score.shape == (1,)
    benchmark.extra_info.update(operator="finpercep-tiny compiled, operator / definition", executor=executor)
