"""Generators by name: the embedded one, folders, and classes of one's own; what they share."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from finpercep.rl.batch import Batch
from finpercep.rl.generators import GeneratorConfig, GeneratorModule, SRTiny, load_generator
from finpercep.rl.rollout import enlarge, results


class Own(GeneratorModule):
    """x0 is the image, ×1."""

    scale, channels, stride = 1, 3, 1

    def __init__(self):
        super().__init__()
        self.frozen = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.layer = nn.Conv2d(3, 3, 1)

    def condition(self, batch):
        return batch.lr

    def velocity(self, x, s, condition):
        return self.layer(self.frozen(x)) - condition

    def decode(self, x0, condition):
        return x0.clamp(0, 1)

    def steps(self, count):
        return SRTiny.steps(self, count)


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("own_generators")
    made.Own, made.make, made.ready, made.number, made.Text = Own, lambda: Own(), Own(), 3, str
    made.takes = lambda width: Own()
    made.Unnamed = type("Unnamed", (GeneratorModule,), {})
    monkeypatch.setitem(sys.modules, "own_generators", made)
    return made


def test_embedded_and_folders(tmp_path):
    embedded = load_generator("finpercep-sr-tiny")
    assert isinstance(embedded, SRTiny)
    assert embedded.fingerprint == "6355c4271e56e8a3"
    model = SRTiny((16, 24), 1)
    model.save_pretrained(tmp_path)
    assert load_generator(tmp_path).fingerprint == model.fingerprint
    with pytest.raises(ValueError, match="finpercep-sr-tny: no such model or folder; did you mean 'finpercep-sr-tiny'"):
        load_generator("finpercep-sr-tny")
    (tmp_path / "config.json").write_text('{"widths": [16, 24]}')
    with pytest.raises(
        ValueError, match=r"config\.json: expected widths and blocks of a generator, got no blocks; one of a class of"
    ):
        load_generator(tmp_path)


@pytest.mark.parametrize("name", ["Own", "make", "ready"])
def test_ones_own(module, name):
    generator = load_generator(f"own_generators:{name}")
    assert isinstance(generator, Own)
    assert not generator.training
    assert results(generator, Batch(torch.rand(2, 3, 4, 6), torch.tensor([0, 1])), 2).shape == (2, 3, 4, 6)


def test_a_generator_is_used_in_a_line():
    """The same image with the same seed, alone and beside others, in [0, 1]."""
    generator, images = load_generator("finpercep-sr-tiny"), torch.rand(2, 3, 12, 16)
    found = enlarge(generator, images, steps=2)
    assert found.shape == (2, 3, 48, 64)
    assert 0 <= found.min() <= found.max() <= 1
    torch.testing.assert_close(enlarge(generator, images[:1], steps=2), found[:1], rtol=0, atol=1e-6)
    assert (enlarge(generator, images, steps=2, seed=1) - found).abs().max() > 1e-4
    bicubic = torch.nn.functional.interpolate(images, scale_factor=4, mode="bicubic").clamp(0, 1)
    assert (found - bicubic).abs().mean() < (found - found.flip(0)).abs().mean()
    assert torch.equal(enlarge(generator, images.double(), steps=2), found)
    with pytest.raises(ValueError, match=r"^steps: expected at least 1, got 0"):
        enlarge(generator, images, steps=0)
    with pytest.raises(TypeError, match=r"^images: expected float in \[0, 1\], got torch.uint8"):
        enlarge(generator, (images * 255).byte())
    with pytest.raises(ValueError, match=r"^images: expected at least one, got none"):
        enlarge(generator, images[:0])
    with pytest.raises(TypeError, match=r"^images: expected a tensor \(B,3,h,w\), got str"):
        enlarge(generator, "photo.png")
    generator.velocity = lambda x, s, condition: x[:, :, ::2]
    with pytest.raises(ValueError, match=r"generator: expected a velocity \(2, 48, 12, 16\), .*got \(2, 48, 6, 16\)"):
        enlarge(generator, images)


def test_what_is_no_generator(module, tmp_path):
    with pytest.raises(ValueError, match="no 'Onw'; did you mean Own"):
        load_generator("own_generators:Onw")
    with pytest.raises(ValueError, match="expected a GeneratorModule, got int"):
        load_generator("own_generators:number")
    with pytest.raises(ValueError, match="expected a GeneratorModule, got str"):
        load_generator("own_generators:Text")
    with pytest.raises(ValueError, match=r"takes: expected what is called without arguments, got missing.*'width'"):
        load_generator("own_generators:takes")
    with pytest.raises(ValueError, match="expected the attributes scale, channels and stride, got no scale"):
        load_generator("own_generators:Unnamed")
    with pytest.raises(ImportError, match="nowhere_at_all:Own: expected a module that can be imported"):
        load_generator("nowhere_at_all:Own")
    module.Frozen = lambda: Own().requires_grad_(False)
    with pytest.raises(ValueError, match="Frozen: expected parameters that ask for a gradient, got none"):
        load_generator("own_generators:Frozen")
    module.Typed = type("Typed", (Own,), {"config": {"dtype": torch.float32}})
    with pytest.raises(ValueError, match="Typed: expected a config that JSON can hold, got Object of type dtype"):
        load_generator("own_generators:Typed")
    normed = Own()
    normed.layer = nn.utils.weight_norm(normed.layer)
    normed.layer(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"Own: expected a generator that copy\.deepcopy copies, got .*can be copied"):
        normed.keep_reference()
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    with pytest.raises(ValueError, match=r"expected a generator, got adapters alone; with diffusers, pipe\.load_lora"):
        load_generator(tmp_path)
    (tmp_path / "run" / "generator").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"expected a generator, got a run's folder; did you mean .*run/generator\?"):
        load_generator(tmp_path / "run")
    for ask, method in (
        (lambda: GeneratorModule().condition(None), r"condition\(batch\)"),
        (lambda: GeneratorModule().velocity(None, None, None), r"velocity\(x, s, condition\)"),
        (lambda: GeneratorModule().decode(None, None), r"decode\(x0, condition\)"),
        (lambda: GeneratorModule().steps(3), r"steps\(count\)"),
    ):
        with pytest.raises(NotImplementedError, match=f"GeneratorModule has no {method}, which every generator needs"):
            ask()
    with pytest.raises(NotImplementedError, match=r"Own has no encode\(photo, condition\)"):
        Own().encode(torch.zeros(1, 3, 4, 4), None)


def test_the_reference_is_a_copy_of_what_is_trained():
    generator, given = Own(), torch.rand(2, 3, 4, 4)
    at = (given, torch.tensor([0.5, 0.5]), given)
    with pytest.raises(RuntimeError, match="call keep_reference"):
        generator.reference_velocity(*at)
    before = generator.velocity(*at).detach()
    generator.keep_reference()
    generator.keep_reference()  # of the generator alone, not of its reference
    with torch.no_grad():
        generator.layer.weight += 1
    assert torch.equal(generator.reference_velocity(*at), before)
    assert (generator.velocity(*at) - before).abs().max() > 0.1
    (kept,) = generator._reference
    assert kept.frozen.weight is generator.frozen.weight  # what is not trained exists once
    assert not any(p.requires_grad for p in kept.parameters())


def test_the_trained_state():
    generator = Own()
    state = {name: tensor.clone() for name, tensor in generator.trained_state().items()}
    assert sorted(state) == ["layer.bias", "layer.weight"]
    assert [id(p) for p in generator.trainable_parameters()] == [id(p) for p in generator.layer.parameters()]
    with torch.no_grad():
        generator.layer.weight += 1
    generator.load_trained_state(state)
    assert torch.equal(generator.layer.weight, state["layer.weight"])
    with pytest.raises(ValueError, match=r"expected the state of 2 trained tensors, got 1 that do not fit, such as"):
        generator.load_trained_state({"layer.weight": state["layer.weight"]})
    with pytest.raises(ValueError, match="that do not fit in shape"):
        generator.load_trained_state({**state, "layer.bias": torch.zeros(4)})


def test_buffers_belong_to_the_state():
    class Counting(Own):
        def __init__(self):
            super().__init__()
            self.register_buffer("asked", torch.zeros(()))
            self.register_buffer("scratch", torch.zeros(()), persistent=False)

    generator = Counting()
    generator.asked += 3
    state = {name: tensor.clone() for name, tensor in generator.trained_state().items()}
    assert sorted(state) == ["asked", "layer.bias", "layer.weight"]
    other = Counting()
    other.load_trained_state(state)
    assert float(other.asked) == 3


def test_tied_weights_are_written(tmp_path):
    class Tied(Own):
        def __init__(self):
            super().__init__()
            self.again = nn.Conv2d(3, 3, 1, bias=False)
            self.again.weight = self.layer.weight

    generator = Tied()
    generator.save_pretrained(tmp_path)
    other = Tied()
    other.load_weights(tmp_path)
    assert torch.equal(other.again.weight, generator.layer.weight)
    assert other.again.weight is other.layer.weight


def test_options():
    with pytest.raises(ValueError, match="train: expected one of lora, full, got 'half'"):
        GeneratorConfig(train="half")
    with pytest.raises(ValueError, match="rank: expected at least 1, got 0"):
        GeneratorConfig(rank=0)
    with pytest.raises(ValueError, match="layers: expected the names"):
        GeneratorConfig(layers=())
