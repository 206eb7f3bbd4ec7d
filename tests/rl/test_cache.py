"""What is computed once: texts, after which no text encoder is needed, and latents of whole images."""

from __future__ import annotations

import pytest
import torch

from finpercep.io.pictures import as_picture, save_image
from finpercep.rl.cache import TensorCache
from finpercep.rl.config import RLConfig
from finpercep.rl.generators import GeneratorConfig, SRTiny, load_generator
from finpercep.rl.latents import keep_latents
from finpercep.rl.loop import train
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.photos import Crops, load_pairs
from tests.rl.conftest import Kill


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
    found = pairs()
    assert keep_latents(found, generator, 32, degraded=0.5) == 2
    batch = Crops(found[:2], 32).batch(0, 4)
    expected = generator.latents_of(batch.lr)
    torch.testing.assert_close(batch.extras["latent_lr"], expected)
    monkeypatch.setattr(generator, "latents_of", lambda lr: pytest.fail("computed again"))
    again = pairs()
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
