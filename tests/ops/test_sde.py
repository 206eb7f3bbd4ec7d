"""sde_step, Eq. 4."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from finpercep import ops
from finpercep.ops import _backend
from finpercep.ops.sde import draw_noise, sde_step

BACKENDS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(not _backend.has_cpp("sde_step"), reason="extension not built")),
]
KINDS = ["flow", "cps", "dance"]
SHAPE = (3, 4, 5, 7)


def images(count, dtype=torch.float64, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def rows(values):
    return values.view(-1, 1, 1, 1)


def published(kind, v, x, noise, s, s_next, level, sigma_max=None):
    """The formulas as flow_grpo (flow, cps) and DanceGRPO (dance) print them; returns x', mean, std, log_prob."""
    dt = s_next - s
    if kind == "flow":
        std = level * math.sqrt(s / (1 - (sigma_max if s == 1 else s)))
        mean = x * (1 + std**2 / (2 * s) * dt) + v * (1 + std**2 * (1 - s) / (2 * s)) * dt
        spread = std * math.sqrt(-dt)
    elif kind == "cps":
        std = spread = s_next * math.sin(level * math.pi / 2)
        x0, x1 = x - s * v, x + (1 - s) * v
        mean = x0 * (1 - s_next) + x1 * math.sqrt(s_next**2 - std**2)
    else:
        std = spread = level * math.sqrt(abs(dt))
        x0 = x - s * v
        score = -(x - x0 * (1 - s)) / s**2
        mean = x + dt * v - 0.5 * level**2 * score * dt
    next_sample = mean + spread * noise
    density = Normal(mean, spread).log_prob(next_sample) if kind != "cps" else -((next_sample - mean) ** 2)
    return next_sample, mean, std, density.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("s", "s_next"), [(0.9, 0.8), (0.5, 0.1), (1.0, 0.93)])
def test_published_formulas(backend, kind, s, s_next):
    v, x, noise = images(3)
    expected = published(kind, v, x, noise, s, s_next, 0.7, sigma_max=0.93)
    step = sde_step(v, x, s, s_next, noise=noise, kind=kind, backend=backend)
    torch.testing.assert_close(step.next_sample, expected[0])
    torch.testing.assert_close(step.mean, expected[1])
    torch.testing.assert_close(step.std, torch.full((3,), expected[2], dtype=torch.float64))
    torch.testing.assert_close(step.log_prob, expected[3])
    assert step.kl is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_sigma_max(backend):
    v, x, noise = images(3)
    step = sde_step(v, x, 1.0, 0.9, noise=noise, sigma_max=0.98, backend=backend)
    torch.testing.assert_close(step.log_prob, published("flow", v, x, noise, 1.0, 0.9, 0.7, sigma_max=0.98)[3])
    below = sde_step(v, x, 0.99, 0.9, noise=noise, sigma_max=0.98, backend=backend)
    torch.testing.assert_close(below.log_prob, published("flow", v, x, noise, 0.99, 0.9, 0.7)[3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_sigma_per_sample(backend, kind):
    v, x, noise = images(3)
    s, s_next = torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0.9, 0.3, 0.0])
    step = sde_step(v, x, s, s_next, noise=noise, kind=kind, backend=backend)
    for i in range(3):
        one = slice(i, i + 1)
        alone = sde_step(v[one], x[one], s[i], s_next[i : i + 1], noise=noise[one], kind=kind, backend=backend)
        for mine, single in zip(step[:4], alone[:4], strict=True):
            assert torch.equal(mine[one], single)  # a sample's result does not depend on its batch


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rescoring_gives_the_same_log_prob(backend, kind, dtype):
    v, x, noise = images(3, dtype)
    s, s_next = torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0.9, 0.3, 0.05])
    drawn = sde_step(v, x, s, s_next, noise=noise, kind=kind, backend=backend)
    scored = sde_step(v, x, s, s_next, next_sample=drawn.next_sample, kind=kind, backend=backend)
    assert drawn.next_sample.dtype == drawn.mean.dtype == dtype
    assert drawn.log_prob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(drawn.log_prob, scored.log_prob)  # so the first ratio is exactly 1
    assert torch.equal(drawn.mean, scored.mean)
    assert torch.equal(drawn.next_sample, scored.next_sample)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_kl(backend, kind):
    v, x, target, other = images(4)
    s, s_next = 0.6, 0.45
    options = {"next_sample": target, "kind": kind, "backend": backend}
    step = sde_step(v, x, s, s_next, reference_velocity=other, **options)
    base = sde_step(other, x, s, s_next, **options)
    spread = rows(step.std) * (math.sqrt(s - s_next) if kind == "flow" else 1)
    exact = kl_divergence(Normal(step.mean, spread), Normal(base.mean, spread)).mean((1, 2, 3))
    torch.testing.assert_close(step.kl, exact)
    variant = sde_step(v, x, s, s_next, reference_velocity=other, kl_kind="flow_grpo", **options)
    published_kl = ((step.mean - base.mean) ** 2 / (2 * rows(step.std) ** 2)).mean((1, 2, 3))
    torch.testing.assert_close(variant.kl, published_kl)
    same = sde_step(v, x, s, s_next, reference_velocity=v, **options)
    assert (same.kl == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "s", "s_next", "level"),
    [("flow", 0.5, 0.3, 0.0), ("dance", 0.5, 0.3, 0.0), ("cps", 0.5, 0.3, 0.0), ("cps", 0.2, 0.0, 0.7)]
    + [(kind, 0.4, 0.4, 0.7) for kind in ("flow", "dance")]
    + [(kind, 0.0, 0.0, 0.7) for kind in KINDS],
)
def test_deterministic_steps_are_defined(backend, kind, s, s_next, level):
    v, x, noise, other = images(4)
    v.requires_grad_()
    step = sde_step(
        v, x, s, s_next, noise_level=level, noise=noise, kind=kind, reference_velocity=other, backend=backend
    )
    assert torch.equal(step.next_sample, step.mean)
    if level == 0 or s_next == 0:  # the ordinary Euler step of the ODE
        torch.testing.assert_close(step.mean, x + (s_next - s) * v)
    assert (step.log_prob == 0).all()
    assert (step.kl == 0).all()
    assert step.std.isfinite().all()
    (step.log_prob.sum() + step.kl.sum()).backward()
    assert (v.grad == 0).all()
    scored = sde_step(v, x, s, s_next, noise_level=level, next_sample=other, kind=kind, backend=backend)
    assert (scored.log_prob == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("s", "s_next"), [(1.0, 0.0), (0.05, 0.0), (1e-6, 0.0), (1.0, 1.0)])
def test_ends_of_the_schedule_are_finite(backend, kind, s, s_next):
    v, x, noise, other = images(4, torch.float32)
    v.requires_grad_()
    step = sde_step(v, x, s, s_next, noise=noise, kind=kind, reference_velocity=other, backend=backend)
    assert all(field.isfinite().all() for field in step)
    (step.log_prob.sum() + step.kl.sum()).backward()
    assert v.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_gradient_by_hand(backend, kind):
    """d log N(x'; a·x + b·v) / dv = b (x' - mean) / spread² / D, with x' held constant."""
    v, x, noise = images(3)
    v.requires_grad_()
    step = sde_step(v, x, 0.6, 0.45, noise=noise, kind=kind, backend=backend)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (step.log_prob * weights).sum().backward()
    shifted = sde_step(v.detach() + 1, x, 0.6, 0.45, noise=noise, kind=kind, backend=backend)
    b = shifted.mean - step.mean.detach()
    spread = rows(step.std) * (math.sqrt(0.15) if kind == "flow" else 1)
    width = math.sqrt(0.5) if kind == "cps" else spread
    expected = rows(weights) * b * (step.next_sample - step.mean).detach() / width**2 / v[0].numel()
    torch.testing.assert_close(v.grad, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("draw", [True, False])
def test_gradcheck(backend, kind, draw):
    shape = (2, 3, 5)
    v, x, other, end = images(4, shape=shape)
    v.requires_grad_()
    s = torch.tensor([1.0, 0.5], dtype=torch.float64)
    s_next = torch.tensor([0.9, 0.2], dtype=torch.float64)
    outcome = {"noise": end} if draw else {"next_sample": end}

    def step(velocity):
        return sde_step(velocity, x, s, s_next, kind=kind, reference_velocity=other, backend=backend, **outcome)

    def pathwise(velocity):
        out = step(velocity)
        return out.mean, out.kl, (out.next_sample if draw else out.log_prob)

    assert torch.autograd.gradcheck(pathwise, v)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_can_be_left_out(backend):
    v, x, noise = images(3, torch.float32)
    full = sde_step(v, x, 0.6, 0.5, noise=noise, backend=backend)
    lean = sde_step(v, x, 0.6, 0.5, noise=noise, return_mean=False, backend=backend)
    assert lean.mean is None
    assert torch.equal(full.next_sample, lean.next_sample)
    assert torch.equal(full.log_prob, lean.log_prob)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes(backend):
    """An autocast model gives half-precision velocities; the latents stay fp32 and nothing is rounded to half."""
    v, x, noise = images(3, torch.float32)
    half = v.bfloat16().requires_grad_()
    step = sde_step(half, x, 0.6, 0.5, noise=noise, reference_velocity=v, backend=backend)
    wide = sde_step(half.detach().float(), x, 0.6, 0.5, noise=noise, reference_velocity=v, backend=backend)
    assert step.next_sample.dtype == torch.float32
    assert torch.equal(step.next_sample, wide.next_sample)
    assert torch.equal(step.log_prob, wide.log_prob)
    torch.testing.assert_close(step.kl, wide.kl)
    step.log_prob.sum().backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.skipif(not _backend.has_cpp("sde_step"), reason="extension not built")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 37, 61), (1, 7)])  # several blocks with a rest; less than a vector
def test_one_low_dtype_and_a_mix_give_the_same_bits(dtype, shape):
    """Images that share a type are converted in registers, a mix goes through buffers: same numbers, same order."""
    v, x, end, other = images(4, dtype, shape)

    def run(reference):
        velocity = v.detach().requires_grad_()
        step = sde_step(velocity, x, 0.7, 0.6, next_sample=end, reference_velocity=reference, backend="cpp")
        (gradient,) = torch.autograd.grad((step.log_prob + step.kl).sum(), velocity)
        return step.log_prob, step.kl, step.mean, gradient

    for alike, mixed in zip(run(other), run(other.float()), strict=True):
        assert torch.equal(alike, mixed)


def test_noise_depends_on_the_sample_and_not_on_the_batch():
    v, x = images(2, torch.float32)

    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    batch = sde_step(v, x, 0.6, 0.5, generator=seeded(1, 2, 3))
    alone = sde_step(v[1:2], x[1:2], 0.6, 0.5, generator=seeded(2)[0])
    assert torch.equal(batch.next_sample[1:2], alone.next_sample)
    with pytest.raises(ValueError, match="generator: expected one per sample, 3, got 1"):
        sde_step(v, x, 0.6, 0.5, generator=seeded(1)[0])
    exact = draw_noise(v[:1].double(), seeded(5)[0])[0]
    assert torch.equal(exact, torch.randn(SHAPE[1:], generator=seeded(5)[0], dtype=torch.float64))
    noise = draw_noise(torch.empty(4, 100_000), None)
    assert noise.mean(1).abs().max() < 0.02
    assert (noise.std(1) - 1).abs().max() < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["flow", "dance"])
def test_rising_sigma_tensors_show_as_nan(backend, kind):
    v, x, noise = images(3, torch.float32)
    step = sde_step(v, x, torch.tensor(0.5), torch.tensor(0.6), noise=noise, kind=kind, backend=backend)
    assert step.log_prob.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    empty = torch.zeros(0, 4, 5, requires_grad=True)
    step = sde_step(empty, empty.detach(), 0.6, 0.5, noise=empty.detach(), backend=backend)
    assert step.next_sample.shape == step.mean.shape == (0, 4, 5)
    assert step.log_prob.shape == step.std.shape == (0,)
    step.log_prob.sum().backward()
    assert empty.grad.shape == (0, 4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"velocity": torch.zeros(2, 4)}, r"velocity: expected shape \(2, 3\) as sample, got \(2, 4\)"),
        ({"velocity": torch.zeros(2, 3, dtype=torch.int64)}, "velocity: expected a floating-point tensor"),
        ({"sample": torch.zeros(2, 0)}, "sample: expected"),
        ({"sample": torch.zeros(2, 3, requires_grad=True)}, "sample: gradients go to velocity only"),
        ({"sigma": 1.2}, r"sigma: expected a number in \[0, 1\], got 1.2"),
        ({"sigma": torch.zeros(3)}, r"sigma: expected a float or a .* shape \(\) or \(2,\)"),
        ({"sigma": 0.3}, "sigma_next: expected at most sigma = 0.3, got 0.5"),
        ({"noise": torch.zeros(3, 2)}, "noise: expected shape"),
        ({"noise": torch.zeros(2, 3, device="meta")}, "noise: expected device cpu as sample, got meta"),
        ({"noise": torch.zeros(2, 3), "next_sample": torch.zeros(2, 3)}, "next_sample: expected no noise"),
        ({"noise": torch.zeros(2, 3), "generator": torch.Generator()}, "noise, generator: expected at most"),
        ({"kind": "ode"}, "kind: expected one of flow, cps, dance, got 'ode'"),
        ({"kl_kind": "k3"}, "kl_kind: expected one of exact, flow_grpo, got 'k3'"),
        ({"noise_level": -1.0}, "noise_level: expected"),
        ({"noise_level": float("inf")}, "noise_level: expected"),
        ({"noise_level": float("nan")}, "noise_level: expected"),
        ({"noise_level": 1.1, "kind": "cps"}, "noise_level: expected"),
        ({"sigma_max": 1.0}, "sigma_max: expected"),
    ],
)
def test_errors_name_the_argument(change, message):
    zeros = torch.zeros(2, 3)
    arguments = {"velocity": zeros, "sample": zeros, "sigma": 0.7, "sigma_next": 0.5} | change
    positional = [arguments.pop(name) for name in ("velocity", "sample", "sigma", "sigma_next")]
    with pytest.raises((ValueError, TypeError), match=message):
        ops.sde_step(*positional, **arguments)


def test_where_gradients_are_off_nothing_asks_for_them():
    v, x, noise = images(3)
    expected = sde_step(v, x, 0.6, 0.5, noise=noise).next_sample
    with torch.no_grad():
        assert torch.equal(sde_step(v, x.requires_grad_(), 0.6, 0.5, noise=noise).next_sample, expected)


@pytest.mark.parametrize("form", ["float", "0-d float32", "0-d float64", "float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_levels_of_every_form_give_the_same_bits(form, backend):
    """0.75 and 0.625 are exact in each; the form with one fp64 number per sample is the one to agree with."""
    velocity, sample, noise = images(3, torch.float32)
    levels = {
        "float": [0.75, 0.625],
        "0-d float32": [torch.tensor(0.75), torch.tensor(0.625)],
        "0-d float64": [torch.tensor(0.75).double(), torch.tensor(0.625).double()],
        "float32": [torch.full((3,), 0.75), torch.full((3,), 0.625)],
        "bfloat16": [torch.full((3,), 0.75).bfloat16(), torch.full((3,), 0.625).bfloat16()],
    }[form]
    exact = [torch.full((3,), value, dtype=torch.float64) for value in (0.75, 0.625)]
    gradients = []
    for sigma, sigma_next in (levels, exact):
        v = velocity.clone().requires_grad_()
        step = ops.sde_step(v, sample, sigma, sigma_next, noise=noise, reference_velocity=sample, backend=backend)
        (step.next_sample.sum() + step.log_prob.sum() + step.kl.sum()).backward()
        gradients.append([v.grad, *step])
    for ours, expected in zip(*gradients, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_timesteps_in_place_of_sigmas_are_named(backend: str, dtype: torch.dtype, request) -> None:
    if backend == "cpp":
        request.getfixturevalue("cpp")
    x = torch.randn(2, 4)
    ok = torch.tensor([0.9, 0.8], dtype=dtype)
    for name, levels in (("sigma", (torch.tensor([857.7, 857.7], dtype=dtype), ok)), ("sigma_next", (ok, 1000 * ok))):
        with pytest.raises(ValueError, match=rf"{name}: expected noise levels in \[0, 1\], got [89]\d\d.*timesteps"):
            ops.sde_step(x, x, *levels, noise=x, backend=backend)
    with pytest.raises(ValueError, match="sigma: expected noise levels"):
        ops.sde_step(x, x, torch.tensor([0.5, float("nan")]), 0.1, noise=x, backend=backend)
