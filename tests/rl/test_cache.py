"""What is computed once: texts, after which no text encoder is needed, and latents of whole images."""

from __future__ import annotations

import shutil

import pytest
import torch

from finpercep.io.pictures import as_picture, save_image
from finpercep.rl.batch import Batch
from finpercep.rl.cache import TensorCache
from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.generators import GeneratorConfig, SRTiny, load_generator
from finpercep.rl.latents import keep_latents
from finpercep.rl.loop import train
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.photos import Crops, load_pairs
from finpercep.rl.precomputed import empty_texts
from finpercep.rl.refl import ReFLConfig
from tests.rl.conftest import Kill
from tests.rl.test_trainer import lines


def test_files_are_whole_or_missing(tmp_path):
    cache, key = TensorCache(tmp_path), {"a": 1, "b": "text"}
    assert cache.get(key) is None
    cache.put(key, {"x": torch.arange(4.0), "y": torch.ones(2, dtype=torch.bfloat16)})
    found = cache.get({"b": "text", "a": 1})
    assert torch.equal(found["x"], torch.arange(4.0))
    assert found["y"].dtype == torch.bfloat16
    assert cache.get({"a": 2, "b": "text"}) is None
    path = cache.path(key)
    path.write_bytes(path.read_bytes()[:40])
    assert cache.get(key) is None
    cache.put(key, {"x": torch.zeros(1)})
    assert torch.equal(cache.get(key)["x"], torch.zeros(1))
    assert [p.name for p in tmp_path.rglob("*.tmp")] == []


def test_text_encoders_are_not_loaded_again(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from transformers import T5EncoderModel

    from tests.rl.generators.pipelines import save_sd3

    folder = save_sd3(tmp_path)
    config = GeneratorConfig(prompt="a b", cache=str(tmp_path / "cache"), rank=2)
    first = load_generator(folder, config)
    loads, original = [], T5EncoderModel.from_pretrained
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", lambda *a, **k: loads.append(a) or original(*a, **k))
    again = load_generator(folder, config)
    assert not loads
    load_generator(folder, GeneratorConfig(prompt="b", cache=config.cache, rank=2))
    assert len(loads) == 1
    for name in first.texts:
        assert torch.equal(getattr(again, f"text_{name}"), getattr(first, f"text_{name}")), name
    assert again.fingerprint == first.fingerprint


@pytest.fixture
def with_texts(tmp_path):
    """A folder as DiT4SR's training has it, for the small SD3, whose pipeline lacks its text encoders."""
    draw = torch.Generator().manual_seed(0)
    root = tmp_path / "dit4sr"
    for number in range(3):
        for folder in ("sr_bicubic", "gt"):
            save_image(as_picture(torch.rand(3, 32, 32, generator=draw)), root / folder / f"{number}.png")
    shapes = {"latent_lr": (1, 4, 4, 4), "prompt_embeds": (1, 5, 32), "pooled_prompt_embeds": (1, 64)}
    for name, shape in shapes.items():
        (root / name).mkdir()
        for number in range(3):
            torch.save(torch.randn(shape, generator=draw), root / name / f"{number}.pt")
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        torch.save(torch.randn(shapes[name], generator=draw)[0], root / name / f"NULL_{name}.pt")
    return root


@pytest.fixture
def without_encoders(tmp_path):
    """Small random weights of SD3's layout, without those of its text encoders."""
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from tests.rl.generators.pipelines import save_sd3

    folder = save_sd3(tmp_path / "sd3")
    for part in (*folder.glob("text_encoder*"), *folder.glob("tokenizer*")):
        shutil.rmtree(part)
    return folder


def test_texts_that_the_data_bring_need_no_encoder(with_texts, without_encoders):
    """Own embeddings, and those of the empty text: by hand under guidance, from answers without it."""
    empty = empty_texts([f"lr:{with_texts}", with_texts])
    assert {name: tuple(t.shape) for name, t in empty.items()} == {
        "prompt_embeds": (1, 5, 32),
        "pooled_prompt_embeds": (1, 64),
    }
    batch = Crops(load_pairs([with_texts], "train", 4), 32).batch(0, 2)
    plain, guided = (
        load_generator(without_encoders, GeneratorConfig(rank=2, guidance=guidance), empty_texts=empty)
        for guidance in (1.0, 3.0)
    )
    x, s = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0.4, 0.8])

    def velocity(generator, extras):
        return generator.velocity(x, s, generator.condition(Batch(batch.lr, batch.ids, extras=extras))).detach()

    latents = {"latent_lr": batch.extras["latent_lr"]}
    own, none = velocity(plain, batch.extras), velocity(plain, latents)
    assert (own - none).abs().max() > 1e-3
    told = {name: tensor.expand(2, *tensor.shape[1:]) for name, tensor in empty.items()}
    assert torch.equal(velocity(plain, {**latents, **told}), none)
    torch.testing.assert_close(velocity(guided, batch.extras), none + 3 * (own - none), atol=1e-5, rtol=1e-5)
    other = load_generator(without_encoders, plain.options, empty_texts={n: t + 1 for n, t in empty.items()})
    assert other.fingerprint != plain.fingerprint
    with pytest.raises(ValueError, match=r"sd3.*: expected a StableDiffusion3ControlNetPipeline, got"):
        load_generator(without_encoders, GeneratorConfig(rank=2, prompt="a"), empty_texts=empty)


def test_a_run_on_texts_that_the_data_bring(with_texts, without_encoders, photo_set, tmp_path):
    """Measured on photos that have none, for which the text is empty."""
    config = RLConfig(
        data=(str(with_texts), str(photo_set)),
        out=str(tmp_path / "run"),
        generator=str(without_encoders),
        generator_options=GeneratorConfig(rank=2, guidance=2.0),
        stages=(StageConfig(steps=2, lr=1e-3),),
        algorithm=ReFLConfig(steps=2, late=1),
        monitors=MonitorConfig(judge=""),
        batch=2,
        side=32,
        eval_photos=1,
        eval_steps=1,
    )
    index = photo_set / "index.jsonl"
    index.write_text("".join(line for line in index.read_text().splitlines(keepends=True) if "val" in line))
    train(config)
    assert len(lines(tmp_path / "run")) == 3


def test_latents_of_whole_images(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from tests.rl.generators.pipelines import save_sd3

    draw = torch.Generator().manual_seed(0)
    for number, side in enumerate((8, 8, 12)):
        save_image(as_picture(torch.rand(3, side, side, generator=draw)), tmp_path / "lr" / f"{number}.png")
    generator = load_generator(save_sd3(tmp_path), GeneratorConfig(cache=str(tmp_path / "cache"), rank=2))

    def pairs():
        return load_pairs([f"lr:{tmp_path / 'lr'}"], "train", 4)

    assert keep_latents(pairs(), SRTiny((16, 24), 1), 32, degraded=0.0) == 0
    assert keep_latents(pairs(), generator, 32, degraded=0.0) == 0  # a batch could not have the third image's
    found = pairs()[:2]
    assert keep_latents(found, generator, 32, degraded=0.5) == 2
    batch = Crops(found, 32).batch(0, 4)
    expected = generator.latents_of(batch.lr)
    torch.testing.assert_close(batch.extras["latent_lr"], expected)
    monkeypatch.setattr(generator, "latents_of", lambda lr: pytest.fail("computed again"))
    again = pairs()[:2]
    assert keep_latents(again, generator, 32, degraded=0.5) == 2
    assert generator.prepare(batch) is batch
    condition = generator.condition(batch)
    torch.testing.assert_close(condition["latent_lr"], expected)


def test_a_run_says_that_images_with_latents_are_never_mirrored(photo_set, tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from tests.rl.generators.pipelines import save_sd3

    class Told(Kill):
        def start(self, lines, **kwargs):
            raise KeyError(*lines)

    config = RLConfig(
        data=(str(photo_set),),
        out=str(tmp_path / "run"),
        generator=str(save_sd3(tmp_path)),
        generator_options=GeneratorConfig(rank=2, cache=str(tmp_path / "cache")),
        monitors=MonitorConfig(judge=""),
        side=64,
        degraded=0.0,
        eval_photos=1,
        eval_steps=1,
    )
    with pytest.raises(KeyError, match=r"latents of 3 images are kept: .* never mirrored or turned"):
        train(config, [Told()])
