"""The score head: Eq. 7 by its formula, and a regression that is float32 at least."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finpercep.models.head import ScoreHead


@pytest.mark.parametrize(
    ("gate", "factor"),
    [("degradation", lambda d: d), ("quality", lambda d: 1 - d), ("residual", lambda d: 1 + d)],
)
def test_pool_is_equation_7(gate, factor):
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 5, 3, 4, generator=generator)
    degradation = torch.rand(2, 1, 24, 32, generator=generator)
    weight = factor(F.interpolate(degradation, (3, 4), mode="area"))
    head = ScoreHead(5, gate=gate)
    assert torch.allclose(head.pool(feature, degradation), (feature * weight).mean((2, 3)), atol=1e-6)
    assert torch.allclose(head.pool(feature, None), feature.mean((2, 3)), atol=1e-6)  # RM_0


def test_regress_is_the_sigmoid_of_the_mlp():
    torch.manual_seed(0)
    head = ScoreHead(5, hidden=7).double()
    pooled = torch.randn(3, 5, dtype=torch.double)
    assert torch.equal(head.regress(pooled), torch.sigmoid(head.mlp(pooled))[:, 0])


def test_close_features_have_different_scores_in_half_precision():
    """Scores near 1, where bfloat16 has two values between 0.992 and 1."""
    torch.manual_seed(0)
    head = ScoreHead(5, hidden=7).bfloat16()
    with torch.no_grad():
        head.mlp[-1].bias.fill_(5)
    scores = head.regress(torch.randn(64, 5, dtype=torch.bfloat16))
    assert scores.dtype == torch.float32
    assert scores.min() > 0.99
    assert len(scores.unique()) > 60


def test_unknown_gate():
    with pytest.raises(ValueError, match=r"^gate: expected one of .*residual.*, got 'none'$"):
        ScoreHead(5, gate="none")


@pytest.mark.slow
def test_compiled_for_any_size_it_is_not_compiled_again():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    head, counter = ScoreHead(5), CompileCounterWithBackend("inductor")
    pool = torch.compile(head.pool, backend=counter, dynamic=True)
    for h, w in ((3, 4), (5, 2), (7, 9)):
        feature, degradation = torch.randn(2, 5, h, w), torch.rand(2, 1, 16 * h, 16 * w)
        with torch.no_grad():
            assert torch.allclose(pool(feature, degradation), head.pool(feature, degradation), atol=1e-6)
    assert counter.frame_count == 1
