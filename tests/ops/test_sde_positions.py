"""sde_step(log_prob="position"): the log-probability of each position of the latents."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from finpercep import ops
from finpercep.ops import _backend
from finpercep.ops.sde import sde_step, sde_step_reference
from tests.ops.test_sde import published

BACKENDS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(not _backend.has_cpp("sde_step"), reason="extension not built")),
]
KINDS = ["flow", "cps", "dance"]
# (B, C, H, W): one channel, three and many; odd sides, one position, and more than a part of the kernels takes
SHAPES = [(3, 1, 5, 7), (2, 3, 1, 1), (1, 48, 9, 3), (2, 3, 33, 67), (2, 4, 16, 8)]


def fresh(*shape, count=4, dtype=torch.float64):
    """New numbers in each run; the seed is in the report of a failure."""
    print("seed", torch.seed())
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(count)]


def levels(batch):
    sigma = torch.linspace(0.9, 0.4, batch, dtype=torch.float64)
    return sigma, sigma - 0.15


def with_gradient(function, v, x, s, s_next, **options):
    """Every field, and the gradient of all of them together, each position weighed by a number of its own."""
    v = v.detach().clone().requires_grad_()
    step = function(v, x, s, s_next, log_prob="position", **options)
    weights = torch.linspace(-1, 2, step.log_prob.numel(), dtype=step.log_prob.dtype).view_as(step.log_prob)
    total = (step.log_prob * weights).sum()
    total = total if step.mean is None else total + (step.mean * x).sum()
    total = total if step.kl is None else total + step.kl.sum()
    total = total + (step.next_sample * x).sum() if step.next_sample.requires_grad else total
    return [*(t for t in step if t is not None), torch.autograd.grad(total, v)[0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_definition(poisoned, shape, kind, backend):
    """log N(x'; mean, spread) of every number, averaged over the channels of a position; and its gradient."""
    v, x, noise, _ = fresh(*shape)
    s, s_next = 0.7, 0.55
    leaf = v.clone().requires_grad_()
    end, mean, std, _ = published(kind, leaf, x, noise, s, s_next, 0.7)
    end, spread = end.detach(), std * math.sqrt(s - s_next) if kind == "flow" else std
    density = -((end - mean) ** 2)
    if kind != "cps":
        density = torch.distributions.Normal(mean, spread).log_prob(end)
    expected = torch.stack([row.mean(0).reshape(-1) for row in density])
    upstream = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    slope = torch.autograd.grad(expected, leaf, upstream)[0]
    for outcome in ({"noise": noise}, {"next_sample": end}):
        mine = v.clone().requires_grad_()
        step = sde_step(mine, x, s, s_next, kind=kind, log_prob="position", backend=backend, **outcome)
        assert step.log_prob.shape == (shape[0], shape[2] * shape[3])
        torch.testing.assert_close(step.log_prob, expected, rtol=1e-9, atol=1e-9)
        found = torch.autograd.grad(step.log_prob, mine, upstream)[0]
        torch.testing.assert_close(found, slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("draw", [True, False])
def test_positions_make_up_the_whole(poisoned, draw, kind, backend):
    """Their mean is the sample's log-probability, and nothing else is another."""
    v, x, other, reference = fresh(2, 4, 3, 5)
    s, s_next = (torch.tensor(rows, dtype=torch.float64) for rows in ([0.9, 0.5], [0.6, 0.3]))
    options = {"noise" if draw else "next_sample": other, "kind": kind, "reference_velocity": reference}
    whole = sde_step(v, x, s, s_next, backend=backend, **options)
    parts = sde_step(v, x, s, s_next, backend=backend, log_prob="position", **options)
    assert whole.log_prob.shape == (2,)
    assert parts.log_prob.shape == (2, 15)
    torch.testing.assert_close(parts.log_prob.mean(1), whole.log_prob)
    torch.testing.assert_close(parts.kl, whole.kl)
    for name in ("next_sample", "mean", "std"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))


def test_by_hand():
    """Two channels, two positions: differences of 1 and 3 on the left, of 0 and 2 on the right."""
    zeros = torch.zeros(1, 2, 1, 2)
    end = torch.tensor([[[[1.0, 0.0]], [[3.0, 2.0]]]])
    step = sde_step(zeros, zeros, 0.5, 0.25, noise_level=1.0, kind="dance", next_sample=end, log_prob="position")
    constant = -math.log(0.5) - math.log(2 * math.pi) / 2  # spread = √0.25
    torch.testing.assert_close(step.log_prob, torch.tensor([[-5 / 0.5 + constant, -2 / 0.5 + constant]]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("draw", [True, False])
def test_gradcheck(backend, kind, draw):
    v, x, other, reference = fresh(2, 3, 2, 5)
    v.requires_grad_()
    outcome = {"noise": other} if draw else {"next_sample": other}

    def step(velocity):
        options = {"kind": kind, "reference_velocity": reference, "log_prob": "position", "backend": backend}
        out = sde_step(velocity, x, *levels(2), **options, **outcome)
        return out.mean, out.kl, (out.next_sample if draw else out.log_prob)

    assert torch.autograd.gradcheck(step, v)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views(poisoned, backend):
    """Channels last, every other sample, expanded and transposed ones give what contiguous ones give."""
    v = fresh(6, 3, 4, 5, count=1, dtype=torch.float32)[0][::2]
    x = fresh(3, 3, 4, 5, count=1, dtype=torch.float32)[0].contiguous(memory_format=torch.channels_last)
    end = fresh(1, 3, 5, 4, count=1, dtype=torch.float32)[0].mT.expand(3, 3, 4, 5)
    other = fresh(3, 3, 4, 6, count=1, dtype=torch.float32)[0][..., 1:]
    images = (v, x, end, other)
    assert not any(image.is_contiguous() for image in images)
    results = []
    for first, second, third, fourth in (images, [image.contiguous() for image in images]):
        options = {"next_sample": third, "reference_velocity": fourth, "backend": backend}
        results.append(with_gradient(sde_step, first, second, *levels(3), **options))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
    weight = torch.arange(60.0).view(20, 3).T  # so may the gradient from above be
    strided, plain = (v.detach().clone().requires_grad_() for _ in range(2))
    for leaf, upstream in ((strided, weight), (plain, weight.contiguous())):
        step = sde_step(leaf, x, *levels(3), next_sample=end, log_prob="position", backend=backend)
        step.log_prob.backward(upstream)
    assert torch.equal(strided.grad, plain.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(poisoned, backend):
    empty = torch.zeros(0, 3, 4, 5, requires_grad=True)
    step = sde_step(empty, empty.detach(), 0.6, 0.5, noise=empty.detach(), log_prob="position", backend=backend)
    assert step.next_sample.shape == step.mean.shape == (0, 3, 4, 5)
    assert step.log_prob.shape == (0, 20)
    step.log_prob.sum().backward()
    assert empty.grad.shape == (0, 3, 4, 5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "s", "s_next", "level"),
    [("flow", 0.5, 0.3, 0.0), ("cps", 0.2, 0.0, 0.7), ("dance", 0.4, 0.4, 0.7), ("flow", 0.0, 0.0, 0.7)],
)
def test_deterministic_steps_are_defined(poisoned, backend, kind, s, s_next, level):
    v, x, noise, other = fresh(2, 3, 4, 5, dtype=torch.float32)
    v.requires_grad_()
    options = {"kind": kind, "noise_level": level, "reference_velocity": other, "backend": backend}
    step = sde_step(v, x, s, s_next, noise=noise, log_prob="position", **options)
    assert torch.equal(step.next_sample, step.mean)
    assert torch.equal(step.log_prob, torch.zeros(2, 20))
    assert (step.kl == 0).all()
    (step.log_prob.sum() + step.kl.sum()).backward()
    assert (v.grad == 0).all()
    far = torch.full_like(x, math.inf)
    scored = sde_step(v, x, s, s_next, next_sample=far, log_prob="position", kind=kind, noise_level=level)
    assert (scored.log_prob == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["flow", "dance"])
def test_rising_sigma_tensors_show_as_nan(backend, kind):
    v, x, noise = fresh(2, 3, 4, 5, count=3, dtype=torch.float32)
    rising = {"kind": kind, "log_prob": "position", "backend": backend}
    step = sde_step(v, x, torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.4]), noise=noise, **rising)
    assert step.log_prob[0].isnan().all()
    assert step.log_prob[1].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_number_that_is_not_finite_stays_at_its_position(backend):
    v, x, end = fresh(1, 3, 4, 5, count=3, dtype=torch.float32)
    end[0, 1, 2, 3] = math.nan
    step = sde_step(v, x, 0.6, 0.5, next_sample=end, log_prob="position", backend=backend)
    assert step.log_prob.isnan().nonzero().tolist() == [[0, 2 * 5 + 3]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ratio_is_one(backend, kind, dtype):
    v, x, noise = fresh(2, 5, 33, 41, count=3, dtype=dtype)
    options = {"kind": kind, "log_prob": "position", "backend": backend}
    drawn = sde_step(v, x, *levels(2), noise=noise, **options)
    again = sde_step(v, x, *levels(2), next_sample=drawn.next_sample, return_mean=False, **options)
    assert drawn.next_sample.dtype == dtype
    assert drawn.log_prob.dtype == torch.float32
    assert torch.equal(drawn.log_prob, again.log_prob)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_position_depends_on_itself_alone(backend):
    """The same numbers in a larger batch, or with others around them, have the same bits."""
    v, x, end = fresh(3, 6, 19, 23, count=3, dtype=torch.float32)
    options = {"log_prob": "position", "backend": backend}
    whole = sde_step(v, x, 0.6, 0.5, next_sample=end, **options).log_prob
    assert torch.equal(whole[1:2], sde_step(v[1:2], x[1:2], 0.6, 0.5, next_sample=end[1:2], **options).log_prob)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_gradients_together(poisoned, shape, dtype):
    """log_prob, mean, next sample and KL in one backward, against fp64."""
    v, x, other, reference = fresh(*shape, dtype=dtype)
    wide = [t.double() for t in (v, x, other, reference)]
    for name in ("noise", "next_sample"):
        ours = with_gradient(sde_step, v, x, *levels(len(x)), **{name: other}, reference_velocity=reference)
        exact = with_gradient(
            sde_step_reference, wide[0], wide[1], *levels(len(x)), **{name: wide[2]}, reference_velocity=wide[3]
        )
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        for value, expected in zip(ours, exact, strict=True):
            size = max(1.0, expected.abs().max().item())
            torch.testing.assert_close(value.double() / size, expected / size, rtol=tolerance, atol=tolerance)


def test_fullgraph_compile_forward_and_backward(cpp):
    v, x, end, reference = fresh(2, 3, 5, 4, dtype=torch.float32)
    s, s_next = levels(2)

    def train(velocity):
        options = {"next_sample": end, "reference_velocity": reference, "log_prob": "position", "backend": "cpp"}
        step = sde_step(velocity, x, s, s_next, return_mean=False, **options)
        return step.log_prob * torch.linspace(-1, 2, 20), step.kl

    results = []
    for function in (train, torch.compile(train, fullgraph=True)):
        velocity = v.clone().requires_grad_()
        log_prob, kl = function(velocity)
        assert log_prob.shape == (2, 20)
        (log_prob.sum() + kl.sum()).backward()
        results.append((log_prob, kl, velocity.grad))
    torch.testing.assert_close(*results)


def test_one_compilation_serves_all_sizes(cpp):
    counter = CompileCounter()

    def step(velocity, sample, end, s, s_next):
        options = {"next_sample": end, "log_prob": "position", "backend": "cpp", "return_mean": False}
        return sde_step(velocity, sample, s, s_next, **options).log_prob

    compiled = torch.compile(step, backend=counter, dynamic=True)
    for side in ((5, 4), (6, 9), (8, 8), (3, 7)):
        v, x, end, _ = fresh(2, 3, *side, dtype=torch.float32)
        torch.testing.assert_close(compiled(v, x, end, *levels(2)), step(v, x, end, *levels(2)))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("log_prob", "shape", "message"),
    [
        ("pixel", (2, 3, 4, 4), "log_prob: expected one of sample, position, got 'pixel'"),
        ("position", (2, 3, 4), r"sample: expected \(B, C, H, W\) with log_prob 'position', got \(2, 3, 4\)"),
        ("position", (0, 3, 4, 0), r"sample: expected \(B, C, H, W\) with log_prob 'position', got \(0, 3, 4, 0\)"),
    ],
)
def test_errors_name_the_argument(log_prob, shape, message):
    zeros = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        ops.sde_step(zeros, zeros, 0.6, 0.5, noise=zeros, log_prob=log_prob)
