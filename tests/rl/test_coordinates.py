"""Flow coordinates: conversions undo each other, and an Euler step is a step of diffusers' schedulers."""

from __future__ import annotations

import pytest
import torch

from finpercep.rl import coordinates

diffusers = pytest.importorskip("diffusers")

DOUBLE = {"dtype": torch.float64}


def pair():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 4, 4, generator=generator, **DOUBLE) for _ in range(2)]


def to_flow(z, alpha, sigma):
    """(x, s) of z = α·x0 + σ·ε, by the definition."""
    total = torch.as_tensor(alpha) + torch.as_tensor(sigma)
    return z / coordinates.per_sample(total, z), torch.as_tensor(sigma) / total


def test_known_values():
    """α = 0.8, σ = 0.6: s = 3/7, x = z/1.4."""
    x0, epsilon = torch.full((1, 1), 2.0, **DOUBLE), torch.full((1, 1), -1.0, **DOUBLE)
    x, s = to_flow(0.8 * x0 + 0.6 * epsilon, 0.8, 0.6)
    assert float(s) == pytest.approx(3 / 7)
    assert float(x) == pytest.approx(1.0 / 1.4)
    torch.testing.assert_close(x, coordinates.mix(x0, epsilon, 3 / 7))
    alpha, sigma = coordinates.preserving(s)
    assert float(alpha) == pytest.approx(0.8)
    assert float(sigma) == pytest.approx(0.6)


@pytest.mark.parametrize("kind", coordinates.PREDICTIONS)
def test_every_true_prediction_gives_the_same_velocity(kind):
    x0, epsilon = pair()
    s = torch.tensor([0.3, 0.9], **DOUBLE)
    alpha, sigma = coordinates.preserving(s)
    a, b = coordinates.per_sample(alpha, x0), coordinates.per_sample(sigma, x0)
    z = a * x0 + b * epsilon
    truth = {"epsilon": epsilon, "v_prediction": a * epsilon - b * x0, "sample": x0, "flow_prediction": epsilon - x0}
    v = coordinates.velocity(truth[kind], z, alpha, sigma, kind)
    torch.testing.assert_close(v, epsilon - x0)
    x, level = to_flow(z, alpha, sigma)
    torch.testing.assert_close(level, s)
    torch.testing.assert_close(coordinates.from_flow(x, s), z)
    torch.testing.assert_close(coordinates.clean(x, s, v), x0)
    torch.testing.assert_close(coordinates.noise(x, s, v), epsilon)
    torch.testing.assert_close(coordinates.euler(x, s, 0.0, v), x0)


def network(z, timestep):
    """Some function of both that is no Gaussian model."""
    return torch.tanh(1.3 * z.roll(1, -1) - 0.4) + timestep / 2000


@pytest.mark.parametrize("kind", coordinates.PREDICTIONS[:3])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_euler_is_ddim(kind, spacing):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=kind, timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=spacing == "trailing"
    )
    steps = coordinates.scheduler_steps(scheduler, 10)
    z = pair()[0].float()
    x = z.clone()
    x = x / sum(coordinates.preserving(steps.s[0]))
    for timestep, s, s_next in zip(steps.timesteps, steps.s[:-1], steps.s[1:], strict=True):
        z = scheduler.step(network(z, timestep), int(timestep), z).prev_sample
        given = coordinates.from_flow(x, s)
        v = coordinates.velocity(network(given, timestep), given, *coordinates.preserving(s), kind)
        x = coordinates.euler(x, s, s_next, v)
    torch.testing.assert_close(coordinates.from_flow(x, steps.s[-1]), z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_flow_match_euler(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    steps = coordinates.scheduler_steps(scheduler, 7)
    assert steps.s[-1] == 0
    z = x = pair()[0].float()
    for timestep, s, s_next in zip(scheduler.timesteps, steps.s[:-1], steps.s[1:], strict=True):
        z = scheduler.step(network(z, timestep), timestep, z).prev_sample
        x = coordinates.euler(x, s, s_next, network(x, timestep))
    torch.testing.assert_close(x, z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_errors_of_what_a_model_predicts(kind):
    """Its own squared error, of predictions made at z and brought to velocities."""
    (x0, epsilon), s = pair(), torch.tensor([0.1, 0.7], dtype=torch.float64)
    x0, epsilon = x0[:2].double(), epsilon[:2].double()
    alpha, sigma = coordinates.preserving(s)
    a, b = (coordinates.per_sample(level, x0) for level in (alpha, sigma))
    z = a * x0 + b * epsilon
    true = {"epsilon": epsilon, "sample": x0, "v_prediction": a * epsilon - b * x0}[kind]
    prediction = true + 0.1 * torch.sin(7 * x0)
    v = coordinates.velocity(prediction, z, alpha, sigma, kind)
    weight = coordinates.error_weight(kind, s, x0)
    torch.testing.assert_close(weight * (v - (epsilon - x0)).square(), (prediction - true).square())
    assert coordinates.error_weight("", s, x0) is None
    assert coordinates.error_weight("flow_prediction", s, x0) is None


@pytest.mark.parametrize(
    ("scheduler", "levels"),
    [
        (lambda: diffusers.FlowMatchHeunDiscreteScheduler(), "1, 0.667, 0.667, 0.334, 0.334, 0.001, 0.001, 0"),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "0, 0.333, 0.666, 0.999, 1"),
        (
            lambda: diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="sigma_min"
            ),
            "",
        ),
    ],
)
def test_levels_that_do_not_fall_to_nothing(scheduler, levels):
    made = scheduler()
    said = rf"^scheduler: expected 4 steps that fall to 0, got the levels {levels}.* from {type(made).__name__}; save"
    with pytest.raises(ValueError, match=said):
        coordinates.scheduler_steps(made, 4)


def test_schedulers_that_do_not_fit():
    with pytest.raises(ValueError, match="clip_sample and thresholding off"):
        coordinates.scheduler_steps(diffusers.DDIMScheduler(), 5)
    with pytest.raises(ValueError, match="clip_sample and thresholding off"):
        coordinates.scheduler_steps(diffusers.DDIMScheduler(clip_sample=False, thresholding=True), 5)
    zero = diffusers.DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="at zero signal"):
        coordinates.scheduler_steps(zero, 5)
    with pytest.raises(ValueError, match="expected predictions of epsilon"):
        coordinates.scheduler_steps(diffusers.DDPMScheduler(prediction_type="flow", clip_sample=False), 5)
    with pytest.raises(ValueError, match=r"got EDMEulerScheduler"):
        coordinates.scheduler_steps(diffusers.EDMEulerScheduler(), 5)
    with pytest.raises(ValueError, match="kind: expected one of epsilon"):
        coordinates.velocity(*pair(), 1.0, 0.0, "eps")
