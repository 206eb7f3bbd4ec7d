"""The Triton operators as PyTorch sees them: signatures, autograd, compile; and the choice of the backend."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import FAMILIES
from finpercep import ops
from finpercep.ops import _backend

OPS = torch.ops.finpercep
NAMES = [name for operator in FAMILIES for name in (operator, f"{operator}_backward") if hasattr(OPS, f"{name}_triton")]


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_that_of_the_compiled_operator(name: str) -> None:
    if not _backend.has_cpp(name):
        pytest.skip("the compiled extension is not built")
    ours, compiled = (getattr(OPS, n).default._schema for n in (f"{name}_triton", name))
    assert [(a.name, str(a.type)) for a in ours.arguments] == [(a.name, str(a.type)) for a in compiled.arguments]
    assert [str(r.type) for r in ours.returns] == [str(r.type) for r in compiled.returns]


def test_fullgraph_compile_forward_and_backward() -> None:
    generator = torch.Generator().manual_seed(0)
    velocity, sample, end, other = (torch.randn(4, 3, 4, 4, generator=generator) for _ in range(4))
    features, degradation = (
        torch.randn(4, 4, 5, generator=generator),
        torch.rand(4, 1, 4, 4, generator=generator),
    )
    rewards, old = torch.rand(4, generator=generator), torch.randn(4, generator=generator) - 1

    def train(velocity, features):
        with_triton = {"backend": "triton"}
        maps = ops.degradation_target(sample, end, alpha=0.5, normalize="minmax", **with_triton)
        pooled = ops.modulate(features, maps * degradation, (2, 2), pool="mean", **with_triton)
        advantages, _ = ops.group_advantage(rewards, group_size=2, **with_triton)
        step = ops.sde_step(
            velocity, sample, torch.full((4,), 0.6), 0.5, next_sample=end, reference_velocity=other, **with_triton
        )
        loss, stats = ops.grpo_loss(
            step.log_prob, old, advantages, clip_low=0.2, clip_high=0.2, kl=step.kl, beta=0.1, **with_triton
        )
        return loss + pooled.square().sum(), stats.ratio_mean

    results = []
    for function in (train, torch.compile(train, fullgraph=True, backend="aot_eager")):
        leaves = [velocity.clone().requires_grad_(), features.clone().requires_grad_()]
        loss, ratio = function(*leaves)
        results.append((loss, ratio, *torch.autograd.grad(loss, leaves)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_the_interpreter_takes_cpu_tensors() -> None:
    cpu = torch.device("cpu")
    assert ops.backends()["available"]["triton"] is True
    assert _backend.resolve("triton", "modulate", cpu, torch.float32) == "triton"
    assert _backend.resolve(None, "modulate", cpu, torch.float32) != "triton"  # slow: only when asked for


def test_mixed_devices_and_dtypes_raise() -> None:
    triton = {"backend": "triton"}
    image, tokens, maps = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 2), torch.zeros(1, 1, 4, 4)
    values = torch.zeros(4)
    clip = {"clip_low": 0.2, "clip_high": 0.2}
    cases = [
        (ValueError, "degradation: expected on cpu", lambda: ops.modulate(tokens, maps.to("meta"), (2, 2), **triton)),
        (TypeError, "degradation: expected float32", lambda: ops.modulate(tokens, maps.int(), (2, 2), **triton)),
        (ValueError, "distorted: expected on cpu", lambda: ops.degradation_target(image, image.to("meta"), **triton)),
        (
            TypeError,
            "distorted: expected torch.float32",
            lambda: ops.degradation_target(image, image.double(), **triton),
        ),
        (
            ValueError,
            "group_ids: expected shape .* on cpu",
            lambda: ops.group_advantage(values, group_ids=values.long().to("meta"), **triton),
        ),
        (
            ValueError,
            "old_log_prob: expected device cpu",
            lambda: ops.grpo_loss(values, values.to("meta"), values, **clip, **triton),
        ),
        (
            ValueError,
            "noise: expected device cpu",
            lambda: ops.sde_step(image, image, 0.6, 0.5, noise=image.to("meta"), **triton),
        ),
        (
            RuntimeError,
            "runs on CUDA tensors, got meta",
            lambda: ops.modulate(tokens.to("meta"), maps.to("meta"), (2, 2), **triton),
        ),
        (
            RuntimeError,
            "supports float32, bfloat16, float16, float64, got float8_e4m3fn",
            lambda: ops.group_advantage(values.to(torch.float8_e4m3fn), group_size=2, **triton),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
