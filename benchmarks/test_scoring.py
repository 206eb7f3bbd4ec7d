"""Score and map of one 512×512 photo by finpercep-tiny, beside the score alone by pyiqa's PIQE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

ROUNDS, WARMUP = 30, 3


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """(1, 3, 512, 512) in [0, 1]; scikit-image carries it."""
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    return torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("executor", ["piqe", "finpercep-tiny"])
def test_scoring(benchmark, photo: Tensor, executor: str) -> None:  # type: ignore[no-untyped-def]
    if executor == "piqe":
        pyiqa = pytest.importorskip("pyiqa", reason="pyiqa is not installed")
        metric = pyiqa.create_metric("piqe", device="cpu")
        result = benchmark.pedantic(metric, (photo,), rounds=ROUNDS, warmup_rounds=WARMUP)
        assert result.isfinite().all()
    else:
        from finpercep import RewardModel

        try:
            model = RewardModel.from_pretrained("finpercep-tiny")
        except (OSError, ValueError) as error:
            pytest.skip(f"finpercep-tiny is not at hand: {error}")
        output = benchmark.pedantic(model.score, (photo,), rounds=ROUNDS, warmup_rounds=WARMUP)
        assert output.map.shape == (1, 1, 512, 512)
    benchmark.extra_info.update(operator="score 512x512", executor=executor, rounds=ROUNDS)
