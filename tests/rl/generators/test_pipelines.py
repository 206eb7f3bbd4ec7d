"""Pipelines of diffusers as generators: what they answer is what diffusers makes of the same files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import euler, from_flow
from finpercep.rl.generators import GeneratorConfig, load_generator
from finpercep.rl.rollout import initial_noise, results, sample, sample_generators
from tests.rl.generators.pipelines import save_flux, save_sd3, save_upscaler

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

SAVE = {
    "epsilon": lambda folder: save_upscaler(folder, "epsilon"),
    "v_prediction": save_upscaler,
    "sd3": save_sd3,
    "flux": save_flux,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of the four pipelines."""
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in SAVE.items()}


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(0)
    return Batch(torch.rand(2, 3, 8, 16, generator=draw), torch.tensor([4, 5]))


def plain(folder):
    """The pipeline as anybody loads it."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def start(generator, batch, count):
    """x at the first level, and the noise that a pipeline is given for it: z."""
    draws = sample_generators(batch.ids, "start")
    z = initial_noise(generator, batch, draws)
    return z, sample_generators(batch.ids, "start")


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
def test_upscaler_samples_what_diffusers_samples(saved, batch, name, guidance):
    """Text, noise on the low-resolution image, level, guidance, DDIM, VAE: all as in the pipeline."""
    generator = load_generator(saved[name], GeneratorConfig(guidance=guidance, prompt="a b", negative_prompt="b"))
    z, draws = start(generator, batch, 4)
    x = sample(generator, batch, 4, draws)
    image = generator.condition(batch)["image"][-len(batch) :]
    pipeline = plain(saved[name])
    pipeline.low_res_scheduler.add_noise = lambda lr, noise, level: image  # whose noise is of another seed
    made = pipeline(
        prompt=["a b"] * 2,
        negative_prompt=["b"] * 2,
        image=batch.lr,
        noise_level=20,
        guidance_scale=guidance,
        num_inference_steps=4,
        latents=z,
        output_type="pt",
    ).images
    given = generator.decode(x, None)
    assert given.dtype == torch.float32
    assert made.std() > 0.02
    torch.testing.assert_close(given, made.float(), atol=1e-5, rtol=1e-5)


def test_upscaler_noise_on_the_low_resolution_image(saved, batch):
    """The scheduler's own mixture, with noise that belongs to the image and not to its place."""
    generator = load_generator(saved["epsilon"], GeneratorConfig(noise_level=100))
    image = generator.condition(batch)["image"]
    scheduler = diffusers.DDPMScheduler.from_pretrained(saved["epsilon"], subfolder="low_res_scheduler")
    level, lr = torch.tensor([100]), batch.lr * 2 - 1
    clean = scheduler.add_noise(lr, torch.zeros_like(lr), level)
    noise = (image - clean) / (scheduler.add_noise(torch.zeros_like(lr), torch.ones_like(lr), level))
    assert noise.mean().abs() < 0.1
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert torch.equal(generator.condition(batch[1:])["image"], image[1:])
    with pytest.raises(ValueError, match="noise_level: expected 0 to 350, got 400"):
        load_generator(saved["epsilon"], GeneratorConfig(noise_level=400))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_an_euler_step_is_a_step_of_ddim(saved, batch, kind):
    """One step of the UNet in flow coordinates, from the middle, against DDIMScheduler on the same UNet."""
    generator = load_generator(saved[kind])
    condition, steps = generator.condition(batch), generator.steps(8)
    scheduler = generator.scheduler
    x = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1))
    s, after = steps.s[3], steps.s[4]
    t = int(steps.timesteps[3])
    assert generator.timesteps(torch.tensor([s, s])).tolist() == [t, t]
    z = from_flow(x, s)
    prediction = generator.denoiser(
        torch.cat([z, condition["image"]], 1),
        t,
        encoder_hidden_states=condition["prompt_embeds"],
        class_labels=torch.tensor([20, 20]),
    ).sample
    expected = scheduler.step(prediction, t, z).prev_sample
    v = generator.velocity(x, torch.tensor([s, s]), condition)
    torch.testing.assert_close(from_flow(euler(x, s, after, v), after), expected, atol=1e-5, rtol=1e-5)


def test_levels_between_timesteps(saved):
    """In proportion between two, and the ends beyond them."""
    generator = load_generator(saved["epsilon"])
    levels = generator.levels
    s = torch.stack([levels[0] / 2, levels[10], 0.75 * levels[10] + 0.25 * levels[11], (1 + levels[-1]) / 2])
    assert generator.timesteps(s).tolist() == pytest.approx([0, 10, 10.25, 999], abs=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sd3_samples_what_diffusers_samples(saved, batch, guidance):
    generator = load_generator(saved["sd3"], GeneratorConfig(guidance=guidance, prompt="a", control_scale=0.7))
    z, draws = start(generator, batch, 4)
    x = sample(generator, batch, 4, draws)
    pipeline = plain(saved["sd3"])
    pipeline.vae.encode = mode_of(pipeline.vae)
    large = torch.nn.functional.interpolate(batch.lr, scale_factor=4, mode="bicubic").clamp(0, 1)
    made = pipeline(
        prompt=["a"] * 2,
        negative_prompt=[""] * 2,
        control_image=large,
        height=32,
        width=64,
        controlnet_conditioning_scale=0.7,
        guidance_scale=guidance,
        num_inference_steps=4,
        latents=z,
        output_type="pt",
    ).images
    torch.testing.assert_close(generator.decode(x, None), made, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("told", [False, True])
def test_flux_samples_what_diffusers_samples(tmp_path, saved, batch, told):
    """With a second answer for guidance, or with a model that is told its guidance."""
    folder = save_flux(tmp_path, guidance=True) if told else saved["flux"]
    generator = load_generator(folder, GeneratorConfig(guidance=3.0, prompt="a", negative_prompt="b", shift_side=64))
    assert generator.guided == (not told)
    batch = Batch(torch.cat([batch.lr, batch.lr], 2), batch.ids)  # 16 x 16: the shift is that of 64 x 64
    z, draws = start(generator, batch, 4)
    x = sample(generator, batch, 4, draws)
    pipeline = plain(folder)
    pipeline.vae.encode = mode_of(pipeline.vae)
    large = torch.nn.functional.interpolate(batch.lr, scale_factor=4, mode="bicubic").clamp(0, 1)
    made = pipeline(
        prompt=["a"] * 2,
        negative_prompt=["b"] * 2,
        true_cfg_scale=1.0 if told else 3.0,
        control_image=large * 2 - 1,  # tensors are taken as they are
        height=64,
        width=64,
        controlnet_conditioning_scale=1.0,
        guidance_scale=3.0,
        num_inference_steps=4,
        latents=pipeline._pack_latents(z, 2, 4, 8, 8),
        output_type="pt",
    ).images
    torch.testing.assert_close(generator.decode(x, None), made, atol=1e-5, rtol=1e-5)


def mode_of(vae):
    """Diffusers draws the control image's latents; their mean is what the generator takes."""
    encode = vae.encode

    def instead(image):
        found = encode(image)
        found.latent_dist.sample = lambda generator=None: found.latent_dist.mode()
        return found

    return instead


def test_flux_with_checkpointing_is_not_compiled(saved):
    generator = load_generator(saved["flux"], GeneratorConfig(checkpointing=True))
    with pytest.raises(ValueError, match=r"compile: expected generator_options\.checkpointing false of FLUX"):
        generator.compile_networks()


@pytest.mark.parametrize("name", SAVE)
def test_sides_and_guidance(saved, batch, name):
    generator = load_generator(saved[name])
    condition = generator.condition(batch)
    photo = torch.rand(2, 3, 32, 64)
    x0 = generator.encode(photo, condition)
    assert x0.shape == (2, generator.channels, 32 // generator.stride, 64 // generator.stride)
    assert generator.scale == 4
    with pytest.raises(ValueError, match=r"lr: expected sides that are multiples of (2|4) for .*, got 7x16"):
        generator.condition(Batch(batch.lr[:, :, :7], batch.ids))
    assert generator.steps(5).s[-1] == 0
    if hasattr(generator, "latents_of"):  # the sides of what is made are what has to fit, by any scale
        generator.scale = 3
        side = 2 * generator.stride
        assert generator.latents_of(torch.rand(1, 3, side, side)).shape[-2:] == (6, 6)
        with pytest.raises(ValueError, match=rf"multiples of {side} for .*, got {side - 1}x{side}"):
            generator.latents_of(torch.rand(1, 3, side - 1, side))


def test_shift_by_size(tmp_path):
    """mu on the line through 256 and 4096 tokens."""
    generator = load_generator(save_sd3(tmp_path, dynamic=True), GeneratorConfig(shift_side=256))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(generator.scheduler.config)
    scheduler.set_timesteps(4, mu=0.5)
    assert generator.steps(4).s == pytest.approx(scheduler.sigmas.tolist())


def test_what_cannot_be_a_generator(saved, tmp_path):
    index = saved["sd3"] / "model_index.json"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text(
        json.dumps(json.loads(index.read_text()) | {"_class_name": "DDPMPipeline"})
    )
    with pytest.raises(
        ValueError, match=r"broken: expected one of StableDiffusionUpscalePipeline, .*, got DDPMPipeline"
    ):
        load_generator(broken)
    with pytest.raises(ValueError, match="controlnet: expected a pipeline that takes one, got DDPMPipeline"):
        load_generator(broken, GeneratorConfig(controlnet="x"))
    (broken / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="got FluxPipeline; name a controlnet"):
        load_generator(broken)
    (broken / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model_index\.json: expected that of a diffusers pipeline"):
        load_generator(broken)
    with pytest.raises(ValueError, match="layers: expected names of layers of UNet2DConditionModel, got to_x"):
        load_generator(saved["epsilon"], GeneratorConfig(layers=("to_x",)))


def with_scheduler(folder, to, scheduler):
    """A copy of a pipeline with another scheduler."""
    shutil.copytree(folder, to)
    shutil.rmtree(to / "scheduler")
    scheduler.save_pretrained(to / "scheduler")
    index = json.loads((to / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (to / "model_index.json").write_text(json.dumps(index))
    return to


@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_flow_models_need_a_flow_scheduler(saved, tmp_path, name, kind):
    """An epsilon-DDIM would take velocities for noise, and sample something."""
    scheduler = getattr(diffusers, kind)(prediction_type="epsilon")
    folder = with_scheduler(saved[name], tmp_path / "other", scheduler)
    with pytest.raises(
        ValueError, match=rf"scheduler: expected a flow-matching one for .*ControlNetPipeline, .*, got {kind}"
    ):
        load_generator(folder)


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"])
def test_the_upscaler_needs_a_scheduler_that_ddim_can_follow(saved, tmp_path, kind):
    """DDIM built of another's configuration would have options of its own, such as clipping."""
    folder = with_scheduler(saved["epsilon"], tmp_path / "other", getattr(diffusers, kind)())
    with pytest.raises(ValueError, match=rf"scheduler: expected DDIMScheduler or DDPMScheduler for .*, got {kind}; "):
        load_generator(folder)


def test_the_upscaler_takes_what_ddpm_says(saved, tmp_path, batch):
    config = diffusers.DDIMScheduler.from_pretrained(saved["v_prediction"], subfolder="scheduler").config
    scheduler = diffusers.DDPMScheduler.from_config(config)
    generator = load_generator(with_scheduler(saved["v_prediction"], tmp_path / "other", scheduler))
    assert generator.kind == "v_prediction"
    assert torch.equal(results(generator, batch, 2, "x"), results(load_generator(saved["v_prediction"]), batch, 2, "x"))


def test_controlnet_from_elsewhere(saved, tmp_path, batch):
    """A plain pipeline and a ControlNet of its own are the pipeline that has one."""
    whole = diffusers.StableDiffusion3ControlNetPipeline.from_pretrained(saved["sd3"])
    parts = {name: part for name, part in whole.components.items() if name != "controlnet"}
    diffusers.StableDiffusion3Pipeline(**parts).save_pretrained(tmp_path / "plain")
    whole.controlnet.save_pretrained(tmp_path / "control")
    generator = load_generator(tmp_path / "plain", GeneratorConfig(controlnet=str(tmp_path / "control")))
    expected = results(load_generator(saved["sd3"]), batch, 2, "x")
    torch.testing.assert_close(results(generator, batch, 2, "x"), expected)
