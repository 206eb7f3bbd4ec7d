"""What the C++ kernels of group_advantage, grpo_loss and sde_step promise beyond their values."""

import math

import pytest
import torch

from finpercep.ops import group_advantage, grpo_loss, sde_step
from finpercep.ops.advantage import group_advantage_reference
from finpercep.ops.grpo import grpo_loss_reference
from finpercep.ops.sde import sde_step_reference

CLIP = {"clip_low": 0.2, "clip_high": 0.3}
OPS = torch.ops.finpercep
# Around the vector widths, the block of 1024 and the chunk of 16384.
SIZES = [1, 3, 15, 17, 33, 1023, 1025, 16383, 16385, 40000]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unaligned(tensor):
    """The same numbers, starting one element past an aligned address."""
    shifted = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return shifted.copy_(tensor)


def sde_inputs(*shape, dtype=torch.float32):
    velocity, sample, outcome, reference = (randn(*shape, seed=s, dtype=dtype) for s in range(4))
    sigma = torch.linspace(0.9, 0.3, shape[0], dtype=torch.float64)
    return velocity, sample, outcome, reference, sigma, sigma - 0.1


@pytest.mark.parametrize("size", SIZES)
def test_sde_step_matches_the_reference(simd, poisoned, size):
    v, x, end, other, s, s_next = sde_inputs(3, size)
    for outcome in ({"noise": end}, {"next_sample": end}):
        gradients = []
        for function, options in ((sde_step, {"backend": "cpp"}), (sde_step_reference, {})):
            velocity = v.clone().requires_grad_()
            step = function(velocity, x, s, s_next, reference_velocity=other, **outcome, **options)
            (step.log_prob.sum() + step.kl.sum() + step.mean.sum()).backward()
            gradients.append((step, velocity.grad))
        (mine, my_grad), (theirs, their_grad) = gradients
        for name in ("next_sample", "log_prob", "mean", "std", "kl"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(my_grad, their_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [33, 1025, 16385])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["flow", "cps", "dance"])
def test_first_ratio_is_one_at_every_simd_level(simd, size, dtype, kind):
    v, x, noise, _, s, s_next = sde_inputs(2, size, dtype=dtype)
    drawn = sde_step(v, x, s, s_next, noise=noise, kind=kind, backend="cpp")
    again = sde_step(
        unaligned(v), x, s, s_next, next_sample=drawn.next_sample, kind=kind, return_mean=False, backend="cpp"
    )
    assert torch.equal(drawn.log_prob, again.log_prob)


@pytest.mark.parametrize("size", SIZES)
def test_grpo_loss_matches_the_reference(simd, poisoned, size):
    old, advantages, kl = randn(size, seed=1), randn(size, seed=2), randn(size, seed=3).abs()
    results = []
    for function, options in ((grpo_loss, {"backend": "cpp"}), (grpo_loss_reference, {})):
        log_prob = (old + 0.3 * randn(size)).requires_grad_()
        loss, stats = function(log_prob, old, advantages, kl=kl, beta=0.1, **CLIP, **options)
        loss.backward()
        results.append((loss, torch.stack(list(stats)), log_prob.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 24, 31, 1024, 1025, 5000])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantage_matches_the_reference(simd, poisoned, size, scale):
    rewards = randn(size * 53)
    rewards[::11] = math.nan
    rewards[size : 2 * size] = 0.1
    for options in ({"correction": 0}, {"correction": 1, "clip": 0.7}):
        mine = group_advantage(rewards, group_size=size, scale=scale, backend="cpp", **options)
        theirs = group_advantage_reference(rewards, group_size=size, scale=scale, **options)
        torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=1e-5)
        for a, b in zip(mine[1], theirs[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_streamed_outputs_are_complete(simd, poisoned):
    """Large outputs go past the cache; every element of them must arrive, from an address of any alignment."""
    v, x, noise, _, s, s_next = sde_inputs(3, 1_100_003)
    step = sde_step(v, x, s, s_next, noise=noise, backend="cpp")
    reference = sde_step_reference(v, x, s, s_next, noise=noise)
    torch.testing.assert_close(step.next_sample, reference.next_sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(step.mean, reference.mean, rtol=1e-5, atol=1e-5)
    rewards = randn(7 * 200_003)
    mine, theirs = group_advantage(rewards, group_size=7), group_advantage_reference(rewards, group_size=7)
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-4, atol=1e-5)
    log_prob = randn(1_300_001).requires_grad_()
    loss, _ = grpo_loss(log_prob, log_prob.detach(), randn(1_300_001, seed=1), **CLIP, backend="cpp")
    (gradient,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(gradient, -randn(1_300_001, seed=1) / 1_300_001)


def test_exponential_is_accurate_everywhere(simd):
    x = torch.cat([torch.linspace(-110, 95, 100_003), torch.tensor([0.0, -0.0, 88.7, -87.4, -103.9])])
    ones = torch.ones_like(x)
    x.requires_grad_()
    loss, _ = grpo_loss(x, torch.zeros_like(ones), -ones, clip_low=1.0, clip_high=1e38, backend="cpp")
    (gradient,) = torch.autograd.grad(loss, x, torch.tensor(float(x.numel())))
    exact = x.detach().double().exp()
    normal = (exact > 1.2e-38) & (exact < 3.4e38)
    error = ((gradient.double() - exact) / exact)[normal].abs().max().item()
    assert error < 3 * 2**-24 * 2  # 3 ulp
    assert (gradient[exact > 3.5e38] == math.inf).all()
    assert ((gradient.double() - exact).abs() <= 2**-148)[exact < 1.1e-38].all()
    for value, expected in ((0.0, 1.0), (math.inf, math.inf), (-math.inf, 0.0)):
        _, stats = grpo_loss(torch.full((40,), value), torch.zeros(40), torch.ones(40), **CLIP, backend="cpp")
        assert stats.ratio_min.item() == stats.ratio_max.item() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_as_close_to_fp32_as_eager(cpp, dtype):
    """Both are judged by their distance to fp64 arithmetic on the same rounded inputs."""
    v, x, end, other, s, s_next = sde_inputs(2, 5003, dtype=dtype)
    wide = sde_step_reference(
        v.double(), x.double(), s, s_next, next_sample=end.double(), reference_velocity=other.double()
    )
    eager = sde_step_reference(v, x, s, s_next, next_sample=end, reference_velocity=other)
    mine = sde_step(v, x, s, s_next, next_sample=end, reference_velocity=other, backend="cpp")
    for name in ("log_prob", "kl", "mean"):
        exact = getattr(wide, name)
        allowed = 1.5 * (getattr(eager, name).double() - exact).abs().max() + 1e-6
        assert (getattr(mine, name).double() - exact).abs().max() <= allowed
    old, advantages = randn(5003, dtype=dtype), randn(5003, seed=1, dtype=dtype)
    new = (old.float() + 0.1 * randn(5003, seed=2)).to(dtype)
    exact, _ = grpo_loss_reference(new.double(), old.double(), advantages.double(), **CLIP)
    eager, _ = grpo_loss_reference(new, old, advantages, **CLIP)
    mine, _ = grpo_loss(new, old, advantages, **CLIP, backend="cpp")
    assert (mine.double() - exact).abs() <= 1.5 * (eager.double() - exact).abs() + 1e-7


def test_views(cpp):
    """Transposed, sliced, expanded and channels-last inputs give what contiguous ones give."""
    big = randn(6, 2, 4, 5)
    v, x, end = big[::2], randn(5, 4, 2, 3, seed=1).permute(3, 2, 1, 0), randn(1, 2, 4, 5, seed=2)
    end = end.expand(3, 2, 4, 5)
    x = x.contiguous(memory_format=torch.channels_last)
    views = sde_step(v, x, 0.6, 0.5, next_sample=end, backend="cpp")
    plain = sde_step(v.contiguous(), x.contiguous(), 0.6, 0.5, next_sample=end.contiguous(), backend="cpp")
    assert torch.equal(views.log_prob, plain.log_prob)
    assert torch.equal(views.mean, plain.mean)
    log_prob = randn(4, 7)
    loss, _ = grpo_loss(log_prob.T, log_prob.T + 0.1, randn(8)[1:], **CLIP, backend="cpp")
    same, _ = grpo_loss(
        log_prob.T.contiguous(), log_prob.T.contiguous() + 0.1, randn(8)[1:].clone(), **CLIP, backend="cpp"
    )
    assert torch.equal(loss, same)
    rewards = randn(48)
    strided, _ = group_advantage(rewards[::2], group_size=4, backend="cpp")
    assert torch.equal(strided, group_advantage(rewards[::2].clone(), group_size=4, backend="cpp")[0])


def test_results_do_not_depend_on_the_number_of_threads(cpp):
    v, x, end, other, s, s_next = sde_inputs(2, 70_001)
    rewards, log_prob = randn(24 * 1000), randn(70_001, seed=5)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            step = sde_step(v, x, s, s_next, next_sample=end, reference_velocity=other, backend="cpp")
            loss, stats = grpo_loss(log_prob, log_prob * 0.9, v[0], **CLIP, backend="cpp")
            advantages, summary = group_advantage(rewards, group_size=24, backend="cpp")
            found.append([step.log_prob, step.kl, loss, *stats, advantages, *summary])
    finally:
        torch.set_num_threads(threads)
    for other_count in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other_count, strict=True))


def test_gradcheck_on_the_real_grpo_kernel(cpp):
    log_prob = randn(9, 3, dtype=torch.float64).requires_grad_()
    kl = randn(9, 3, seed=1, dtype=torch.float64).requires_grad_()
    old, advantages = randn(9, 3, seed=2, dtype=torch.float64), randn(9, seed=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: grpo_loss(a, old, advantages, kl=b, beta=0.3, **CLIP, backend="cpp")[0], (log_prob, kl)
    )


def test_opcheck(cpp):
    rewards = randn(24)
    torch.library.opcheck(OPS.group_advantage.default, (rewards, None, 4, 1e-4, 0, 0, 0.0, 1e-6))
    torch.library.opcheck(OPS.group_advantage.default, (rewards, torch.arange(24) % 5, 0, 1e-4, 1, 1, 2.0, 0.0))
    log_prob, old, kl = (
        randn(6, 2).requires_grad_(),
        randn(6, 2, seed=1),
        randn(6, 2, seed=2).requires_grad_(),
    )
    torch.library.opcheck(OPS.grpo_loss.default, (log_prob, old, randn(6), kl, 0.2, 0.2, 0.1))
    torch.library.opcheck(OPS.grpo_loss.default, (log_prob, old, randn(6), None, 0.2, 0.2, 0.0))
    v, x, end, other, s, s_next = sde_inputs(2, 3, 4)
    v.requires_grad_()
    for noise, next_sample, reference, mean in ((end, None, None, True), (None, end, other, False)):
        for positions in (0, 4):
            arguments = (v, x, s, s_next, noise, next_sample, reference, 0, True, 0.7, -1.0, mean, positions)
            torch.library.opcheck(OPS.sde_step.default, arguments)


def test_fullgraph_compile_forward_and_backward(cpp):
    v, x, end, other, s, s_next = sde_inputs(4, 3, 8, 8)
    rewards, old = randn(4), randn(4, seed=7) - 1

    def train(velocity):
        advantages, _ = group_advantage(rewards, group_size=2, backend="cpp")
        step = sde_step(velocity, x, s, s_next, next_sample=end, reference_velocity=other, backend="cpp")
        loss, stats = grpo_loss(step.log_prob, old, advantages, kl=step.kl, beta=0.1, **CLIP, backend="cpp")
        return loss, stats.ratio_mean

    results = []
    for function in (train, torch.compile(train, fullgraph=True)):
        velocity = v.clone().requires_grad_()
        loss, ratio = function(velocity)
        loss.backward()
        results.append((loss, ratio, velocity.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_sde_step_keeps_a_third_of_eagers_memory(cpp):
    """Peak bytes allocated by a training step (forward and backward), inputs not counted."""
    v, x, end, other, s, s_next = sde_inputs(4, 3, 64, 64)
    v.requires_grad_()

    def peak(function, **options):
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
            step = function(v, x, s, s_next, next_sample=end, reference_velocity=other, return_mean=False, **options)
            torch.autograd.grad(step.log_prob.sum() + step.kl.sum(), v)
        events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = highest = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            highest = max(highest, held)
        return highest

    mine, eager = peak(sde_step, backend="cpp"), peak(sde_step_reference)
    assert mine >= v.numel() * 4  # the gradient itself: the measurement sees memory
    assert mine <= eager / 3
