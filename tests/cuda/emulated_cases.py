"""Cases that the operators' own tests do not reach: many blocks, every order of the threads, launches. Run by
test_emulated.py, with the emulator in the place of finpercep._C."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finpercep import ops
from finpercep.ops.advantage import group_advantage_reference
from finpercep.ops.degradation_target import degradation_target_reference
from finpercep.ops.modulate import modulate_reference
from finpercep.ops.sde import sde_step_reference

ORDERS = ("baseline", "avx2", "avx512")  # forward, backward, shuffled: see emulator.cpp
CLIP = {"clip_low": 0.2, "clip_high": 0.3}


@pytest.fixture
def emulator(cpp: str):
    from finpercep import _C

    assert _C.build_info()["compiler"] == "CUDA kernels, emulated"
    yield _C
    _C.set_simd_level("baseline")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unaligned(tensor: Tensor, by: int = 1) -> Tensor:
    """The same numbers, `by` elements past an aligned address."""
    shifted = torch.empty(tensor.numel() + by, dtype=tensor.dtype)[by:].view(tensor.shape)
    return shifted.copy_(tensor)


def with_gradients(function, tensors: list[Tensor], **options) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def everything(dtype: torch.dtype, shift: int) -> list[Tensor]:
    """Results and gradients of all operators, on sizes of several blocks, from addresses `shift` elements off."""

    def make(*shape: int, seed: int) -> Tensor:
        return unaligned(randn(*shape, seed=seed, dtype=dtype), shift)

    results: list[Tensor] = []
    features, degradation = make(2, 35 * 6, 20, seed=0), make(2, 1, 50, 64, seed=1)
    for pool in (None, "mean"):
        results += with_gradients(
            lambda f, m, pool=pool: ops.modulate(f, m, (6, 35), pool=pool, backend="cpp"),
            [features, degradation],
        )
    images = [make(2, 3, 65, 67, seed=2), make(2, 3, 65, 67, seed=3)]
    maps = [make(2, 40, 9, 8, seed=4), make(2, 40, 9, 8, seed=5)]
    for normalize in ("minmax", "percentile"):
        results += with_gradients(
            lambda *t, n=normalize: ops.degradation_target(*t, normalize=n, backend="cpp"), [*images, *maps]
        )
    rewards, ids = make(9000, seed=6), torch.arange(9000) * 7919 % 400
    for groups in ({"group_size": 24}, {"group_size": 3000}, {"group_ids": ids}, {"group_ids": ids % 2}):
        for count in (3000, 9000):
            parts = {k: v[:count] if isinstance(v, Tensor) else v for k, v in groups.items()}
            advantages, stats = ops.group_advantage(rewards[:count], scale="batch", backend="cpp", **parts)
            results += [advantages, *stats]
    log_prob = make(9001, seed=7)
    loss, stats = ops.grpo_loss(log_prob, log_prob * 0.9, make(9001, seed=8), **CLIP, backend="cpp")
    results += [loss, *stats]
    v, x, end, other = (make(2, 9001, seed=9 + k) for k in range(4))
    step = ops.sde_step(v, x, 0.6, 0.5, next_sample=end, reference_velocity=other, backend="cpp")
    return [*results, step.mean, step.log_prob, step.kl]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_order_of_threads(emulator, poisoned: None, dtype: torch.dtype) -> None:
    """A missing barrier or an atomic sum of floats shows as a difference; alignment must not show at all."""
    found = []
    for order in ORDERS:
        emulator.set_simd_level(order)
        found.append(everything(dtype, shift=ORDERS.index(order)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert not any(t.isnan().any() for t in found[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("grid", "side"),
    [
        ((2, 3), (5, 9000)),  # a window is wider than what a block reads at once
        ((2, 40), (4, 3000)),  # a block takes its cells in turns
        ((3, 33), (2, 5)),  # windows overlap
    ],
)
def test_windows_of_modulate(emulator, poisoned: None, grid: tuple[int, int], side: tuple[int, int], dtype) -> None:
    emulator.set_simd_level("avx512")
    features, degradation = randn(2, grid[0] * grid[1], 40, dtype=dtype), randn(2, 1, *side, seed=1, dtype=dtype)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}
    for pool in (None, "mean"):
        pair = [
            with_gradients(
                lambda f, m, g=function, p=pool: g(f, m, grid, gate="residual", pool=p), [features, degradation]
            )
            for function in (ops.modulate, modulate_reference)
        ]
        for mine, theirs in zip(*pair, strict=True):
            torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_blocks_match_the_reference(emulator, poisoned: None, dtype: torch.dtype) -> None:
    emulator.set_simd_level("avx512")
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    features, degradation = randn(1, 130 * 70, 5, dtype=dtype), randn(1, 1, 300, 150, seed=1, dtype=dtype)
    for pool in (None, "mean"):
        pair = [
            with_gradients(lambda f, m, g=function, p=pool: g(f, m, (130, 70), pool=p), [features, degradation])
            for function in (ops.modulate, modulate_reference)
        ]
        for mine, theirs in zip(*pair, strict=True):
            torch.testing.assert_close(mine, theirs, **tolerance)
    images = [randn(1, 3, 150, 201, seed=k, dtype=dtype) for k in (2, 3)]
    maps = [randn(1, 300, 11, 13, seed=k, dtype=dtype) for k in (4, 5)]
    for normalize in ("none", "scale", "minmax", "percentile"):
        pair = [
            with_gradients(lambda *t, g=function, n=normalize: g(*t, normalize=n), [*images, *maps])
            for function in (ops.degradation_target, degradation_target_reference)
        ]
        for mine, theirs in zip(*pair, strict=True):
            size = max(1.0, theirs.abs().max().item())
            torch.testing.assert_close(mine / size, theirs / size, **tolerance)
    v, x, end, other = (randn(3, 9001, seed=k, dtype=dtype) for k in range(4))
    mine, theirs = (f(v, x, 0.6, 0.5, noise=end, reference_velocity=other) for f in (ops.sde_step, sde_step_reference))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("count", [1, 2, 500, 4096, 5000])
def test_group_advantage_of_any_size(emulator, poisoned: None, count: int, scale: str, dtype: torch.dtype) -> None:
    emulator.set_simd_level("avx512")
    rewards = randn(count, dtype=dtype)
    rewards[::13] = float("nan")
    rewards[1::17] = 0.5
    generator = torch.Generator().manual_seed(count)
    few = torch.randint(-(2**62), 2**62, (3,), generator=generator)
    cases: list[dict] = [{"group_ids": torch.randint(-20, 20 + count // 99, (count,), generator=generator)}]
    cases += [{"group_ids": few[torch.randint(0, 3, (count,), generator=generator)]}]
    cases += [{"group_ids": torch.full((count,), 2**63 - 1)}]  # what the padding is filled with
    cases += [{"group_size": size} for size in (1, 3, 24, 500, 1250, count) if count % size == 0]
    for groups in cases:
        mine, my_stats = ops.group_advantage(rewards, scale=scale, clip=1.5, backend="cpp", **groups)
        theirs, stats = group_advantage_reference(rewards, scale=scale, clip=1.5, **groups)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        for a, b in zip(my_stats, stats, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [300, 9001])
def test_sigma_in_every_form_gives_the_same_bits(emulator, poisoned: None, size: int) -> None:
    """A float, a number on the host, of each sample, fp32 or fp64: read as they are, computed in fp64."""
    v, x, end, other = (randn(3, size, seed=k) for k in range(4))

    def step(sigma, sigma_next) -> list[Tensor]:
        def run(velocity: Tensor) -> Tensor:
            one = ops.sde_step(velocity, x, sigma, sigma_next, next_sample=end, reference_velocity=other, backend="cpp")
            return torch.stack([one.log_prob, one.kl])

        return with_gradients(run, [v])

    exact = torch.full((3,), 0.625, dtype=torch.float64)
    expected = step(exact, exact - 0.125)
    for sigma in (0.625, exact.float(), exact[0], exact[0].float(), exact.bfloat16(), exact[:1].expand(3)):
        assert all(torch.equal(a, b) for a, b in zip(expected, step(sigma, sigma - 0.125), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(expected, step(exact.float(), 0.5), strict=True))


@pytest.mark.parametrize(("normalize", "launches"), [("minmax", 2 + 2), ("percentile", 3 * 7 + 2)])
def test_the_batch_in_slices_gives_the_same_bits(emulator, normalize: str, launches: int) -> None:
    """Maps that L2 does not hold together go through the passes of percentile some images at a time."""
    images = [randn(3, 3, 1500, 1500, seed=k) for k in (2, 3)]  # 9 MB a map: one image each
    tensors = [*images, *(randn(3, 4, 5, 6, seed=k) for k in (4, 5))]
    weight = randn(3, 1, 1500, 1500, seed=6)

    def run(chosen: slice) -> list[Tensor]:
        leaves = [t[chosen].clone().requires_grad_() for t in tensors]
        out = ops.degradation_target(*leaves, alpha=0.5, normalize=normalize, backend="cpp")
        return [out.detach(), *torch.autograd.grad(out, leaves, weight[chosen])]

    before = emulator.launches()
    together = run(slice(None))
    assert emulator.launches() - before == launches
    for b in range(3):
        for one, all_of_them in zip(run(slice(b, b + 1)), together, strict=True):
            assert torch.equal(one[0], all_of_them[b])


@pytest.mark.parametrize("normalize", ["none", "scale", "minmax", "percentile"])
@pytest.mark.parametrize(
    ("batch", "side", "grid"),
    [
        (2, (3, 9001), (2, 5)),  # a row is three tiles
        (2, (2, 4100), (3, 4099)),
        (150, (5, 7), (2, 3)),  # more images of one tile than lie between the two parts of a block
        (3, (300, 33), (1, 1)),
    ],
)
def test_degradation_target_of_any_size(
    emulator, poisoned: None, normalize: str, batch: int, side: tuple[int, int], grid: tuple[int, int]
) -> None:
    emulator.set_simd_level("avx512")
    tensors = [randn(batch, 3, *side, seed=k, dtype=torch.float64) for k in (0, 1)]
    tensors += [randn(batch, 5, *grid, seed=k, dtype=torch.float64) for k in (2, 3)]
    pair = [
        with_gradients(lambda *t, g=function: g(*t, normalize=normalize, scale=0.7), tensors)
        for function in (ops.degradation_target, degradation_target_reference)
    ]
    for mine, theirs in zip(*pair, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_launches(emulator) -> None:
    """Small calls take as few launches as promised."""

    def launches(call) -> int:
        before = emulator.launches()
        call()
        return emulator.launches() - before

    rewards, ids = randn(4096), torch.arange(4096) % 99
    for scale in ("group", "batch", "none"):
        assert launches(lambda s=scale: ops.group_advantage(rewards, group_size=16, scale=s)) == 1
        assert launches(lambda s=scale: ops.group_advantage(rewards, group_ids=ids, scale=s)) == 1
    x = randn(4, 4096)
    assert launches(lambda: ops.sde_step(x, x, 0.6, 0.5, noise=x, reference_velocity=x)) == 1
    assert launches(lambda: ops.grpo_loss(x[0], x[1], x[2], kl=x[3], **CLIP)) == 1
    features, degradation = randn(2, 64, 32), randn(2, 1, 32, 32)
    assert launches(lambda: ops.modulate(features, degradation, (8, 8))) == 1
    assert launches(lambda: ops.modulate(features, degradation, (8, 8), pool="mean")) == 2
    image = randn(2, 3, 40, 40)
    assert launches(lambda: ops.degradation_target(image, image, normalize="scale")) == 1
    assert launches(lambda: ops.degradation_target(image, image, normalize="minmax")) == 1
