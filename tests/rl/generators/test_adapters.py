"""What of a pipeline is trained, what its reference is, and that plain diffusers loads what was trained."""

from __future__ import annotations

import pytest
import torch

from finpercep.rl.batch import Batch
from finpercep.rl.generators import GeneratorConfig, load_generator
from finpercep.rl.generators.flow_matching import flow_matching_loss
from finpercep.rl.rollout import results
from tests.rl.generators.pipelines import save_flux, save_sd3, save_upscaler

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

SAVE = {"upscaler": save_upscaler, "sd3": save_sd3, "flux": save_flux}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in SAVE.items()}


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(0)
    photo = torch.rand(2, 3, 32, 32, generator=draw)
    return Batch(torch.nn.functional.avg_pool2d(photo, 4), torch.tensor([4, 5]), photo)


def asked(generator, batch):
    """x, s and condition."""
    draw = torch.Generator().manual_seed(2)
    shape = (2, generator.channels, 32 // generator.stride, 32 // generator.stride)
    return torch.randn(shape, generator=draw), torch.tensor([0.4, 0.8]), generator.condition(batch)


def train(generator, batch, steps=2, rate=0.05):
    optimizer = torch.optim.AdamW(generator.trainable_parameters(), lr=rate)
    for step in range(steps):
        loss = flow_matching_loss(generator, batch, [torch.Generator().manual_seed(2 * step + row) for row in range(2)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", SAVE)
def test_plain_diffusers_loads_the_adapter(saved, tmp_path, batch, name):
    """alpha / rank = 4 must not get lost; the trained model in diffusers gives what the generator gives."""
    config = GeneratorConfig(rank=2, alpha=8)
    generator = load_generator(saved[name], config)
    at = asked(generator, batch)
    before = generator.velocity(*at).detach()
    train(generator, batch)
    after = generator.velocity(*at).detach()
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(generator.reference_velocity(*at), before)
    torch.testing.assert_close(generator.velocity(*at), after)  # the adapters are on again
    assert all(p.requires_grad for p in generator.trainable_parameters())

    generator.save_pretrained(tmp_path / "lora")
    assert [file.name for file in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipeline = diffusers.DiffusionPipeline.from_pretrained(saved[name])
    pipeline.load_lora_weights(str(tmp_path / "lora"))
    fresh = load_generator(saved[name], GeneratorConfig(train="full"))
    fresh.denoiser = getattr(pipeline, fresh.part)
    torch.testing.assert_close(fresh.velocity(*at), after, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SAVE)
def test_full_training(saved, tmp_path, batch, name):
    """All of the UNet or transformer, and nothing else; the reference is a copy; its folder loads in diffusers."""
    generator = load_generator(saved[name], GeneratorConfig(train="full"))
    assert len(generator.trainable_parameters()) == len(list(generator.denoiser.parameters()))
    generator.keep_reference()
    at = asked(generator, batch)
    before = generator.velocity(*at).detach()
    train(generator, batch, 1, 0.01)
    after = generator.velocity(*at).detach()
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(generator.reference_velocity(*at), before)
    assert generator._reference[0].vae.encoder.conv_in.weight is generator.vae.encoder.conv_in.weight
    generator.save_pretrained(tmp_path)
    part = type(generator.denoiser).from_pretrained(tmp_path, subfolder=generator.part)
    generator.denoiser = part
    torch.testing.assert_close(generator.velocity(*at), after)


@pytest.mark.parametrize("name", SAVE)
def test_checkpointing_changes_memory_alone(saved, batch, name):
    """Less is kept for the backward pass; gradients are the same."""
    kept, gradients = [], []
    for checkpointing in (False, True):
        generator = load_generator(saved[name], GeneratorConfig(rank=2, checkpointing=checkpointing))
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = flow_matching_loss(generator, batch, [torch.Generator().manual_seed(row) for row in range(2)])
        loss.backward()
        kept.append(total)
        gradients.append([p.grad for p in generator.trainable_parameters()])
    assert kept[1] < 0.8 * kept[0]
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_layers_by_name(saved):
    attention = load_generator(saved["flux"], GeneratorConfig(rank=2))
    more = load_generator(saved["flux"], GeneratorConfig(rank=2, layers=("to_q", "ff.net.2", "proj_mlp")))
    names = more.trained_state()
    assert all(".lora_" in name for name in names)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"to_q", "2", "proj_mlp"}
    assert not any("proj_mlp" in name for name in attention.trained_state())


def test_identity(saved):
    """The fingerprint knows pipeline, options and adapter; loading draws nothing from the global generator."""
    torch.manual_seed(7)
    first = load_generator(saved["sd3"], GeneratorConfig(rank=2))
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn)
    again = load_generator(saved["sd3"], GeneratorConfig(rank=2))
    assert again.fingerprint == first.fingerprint
    assert load_generator(saved["sd3"], GeneratorConfig(rank=2, guidance=2.0)).fingerprint != first.fingerprint
    with torch.no_grad():
        again.trainable_parameters()[0].add_(1)
    assert again.fingerprint != first.fingerprint


def test_half_precision_trains_in_single(saved, batch):
    generator = load_generator(saved["sd3"], GeneratorConfig(rank=2, dtype="bfloat16"))
    assert {p.dtype for p in generator.trainable_parameters()} == {torch.float32}
    assert generator.denoiser.proj_out.weight.dtype == torch.bfloat16
    assert generator.vae.encoder.conv_in.weight.dtype == torch.float32
    at = asked(generator, batch)
    single = load_generator(saved["sd3"], GeneratorConfig(rank=2))
    exact = single.velocity(*asked(single, batch))
    v = generator.velocity(*at)
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, exact, atol=0.05, rtol=0.05)
    v.sum().backward()


@pytest.mark.parametrize("decode", ["sliced", "tiled"])
def test_decoding_in_parts(saved, batch, decode):
    """One image at a time is exact; tiles of images that fit into one are, too."""
    whole = load_generator(saved["upscaler"])
    parts = load_generator(saved["upscaler"], GeneratorConfig(decode=decode))
    assert torch.allclose(results(parts, batch, 2, "x"), results(whole, batch, 2, "x"), atol=1e-6)
    assert parts.vae.use_slicing == (decode == "sliced")
    assert parts.vae.use_tiling == (decode == "tiled")


def test_tiles_have_a_gradient(saved):
    """Of an image of several tiles, along a direction in all of its latents, against a central difference."""
    generator = load_generator(saved["sd3"], GeneratorConfig(rank=2, decode="tiled"))
    generator.vae.double()
    calls, forward = [], generator.vae.decoder.forward
    generator.vae.decoder.forward = lambda z: calls.append(z.shape[-2:]) or forward(z)
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 8, 8), (1, 4, 8, 8), (1, 3, 64, 64))
    x0, direction, weight = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)

    def images(x0):  # as `decode` has it, in double precision
        return (generator.vae.decode(x0 / generator.vae.config.scaling_factor + generator._shift).sample * weight).sum()

    leaf = x0.clone().requires_grad_()
    images(leaf).backward()
    assert len(calls) == 9
    assert (leaf.grad.abs().amax((0, 1)) > 0).all()
    width = 1e-5
    numeric = (images(x0 + width * direction) - images(x0 - width * direction)).detach() / (2 * width)
    assert float((leaf.grad * direction).sum()) == pytest.approx(float(numeric), rel=1e-6)
    leaf = x0.float().requires_grad_()
    generator.vae.float()
    (generator.decode(leaf) * weight.float()).sum().backward()
    assert (leaf.grad.abs().amax((0, 1)) > 0).all()
