"""Whole runs of pipelines in diffusers' layouts: killed, resumed by the command, adapters loaded by plain diffusers.

And each of their options in the loop: guidance, half precision, tiles, the average, all weights.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.rl.batch import Batch
from finpercep.rl.config import KINDS, RLConfig, StageConfig
from finpercep.rl.generators import GeneratorConfig, load_generator
from finpercep.rl.loop import train
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.settings_yaml import as_yaml
from finpercep.rl.trainer import RLTrainer
from tests.rl.conftest import Kill
from tests.rl.generators.pipelines import save_flux, save_sd3, save_upscaler
from tests.rl.test_trainer import lines

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = pytest.mark.slow

SAVE = {"upscaler": save_upscaler, "sd3": save_sd3, "flux": save_flux}
SMALL = {
    "refl": {"steps": 2, "late": 1},
    "dpo": {"steps": 2, "group_size": 2},
    "grpo": {"steps": 2, "group_size": 2, "beta": 0.1},
    "nft": {"steps": 2, "group_size": 2, "reference_weight": 0.1},
}
RUNS = [(layout, name) for layout in SAVE for name in ("refl", "grpo")] + [("sd3", "dpo"), ("flux", "nft")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in SAVE.items()}


@pytest.mark.parametrize(("layout", "name"), RUNS)
def test_run(saved, photo_set, tmp_path, layout, name):
    config = RLConfig(
        data=(str(photo_set),),
        out=str(tmp_path / "run"),
        generator=str(saved[layout]),
        generator_options=GeneratorConfig(rank=2, alpha=8),
        algorithm=KINDS[name](**SMALL[name]),
        stages=(StageConfig(steps=5, lr=1e-2), StageConfig(steps=5, lr=1e-2, score_weight=1.0, map_weight=0.0)),
        monitors=MonitorConfig(judge=""),
        batch=2,
        side=32,
        save_every=2,
        eval_every=10,
        eval_photos=1,
        eval_steps=1,
    )
    with pytest.raises(KeyError, match="killed"):
        train(config, [Kill()])
    (tmp_path / "run.yaml").write_text(as_yaml(config))
    result = CliRunner().invoke(app, ["train-rl", "--config", str(tmp_path / "run.yaml"), "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert "resumed at step 2" in result.output
    log = lines(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(11))
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in log[1:])

    pipeline = diffusers.DiffusionPipeline.from_pretrained(saved[layout])
    pipeline.load_lora_weights(str(tmp_path / "run" / "generator"))
    fresh = load_generator(saved[layout], GeneratorConfig(train="full"))
    before = answer(fresh)
    fresh.denoiser = getattr(pipeline, fresh.part)
    assert (answer(fresh) - before).abs().max() > 1e-3
    if name == "grpo":  # the run that was never stopped, to the bit
        whole = train(replace(config, out=str(tmp_path / "whole")))
        assert log == lines(tmp_path / "whole")
        torch.testing.assert_close(answer(fresh), answer(whole), atol=1e-5, rtol=1e-4)
        adapters = [tmp_path / out / "generator" / "pytorch_lora_weights.safetensors" for out in ("run", "whole")]
        assert adapters[0].read_bytes() == adapters[1].read_bytes()


ADAPTER = {"rank": 2, "alpha": 8}
TRAINED = {
    "guidance": ("sd3", "grpo", {**ADAPTER, "guidance": 3.0, "prompt": "a", "negative_prompt": "b"}, {}),
    "bfloat16": ("flux", "grpo", {**ADAPTER, "dtype": "bfloat16"}, {}),
    "average": ("upscaler", "grpo", ADAPTER, {"ema": 0.9}),
    "full": ("upscaler", "grpo", {"train": "full"}, {}),
    "tiles": ("sd3", "refl", {**ADAPTER, "decode": "tiled"}, {"side": 64}),
}


def test_a_shift_by_size_is_that_of_the_size_that_is_trained(tmp_path, photo_set):
    """32 pixels are 4 tokens, 64 are 16; a run that was begun with another side goes on with that one alone."""
    config = RLConfig(
        data=(str(photo_set),),
        out=str(tmp_path / "run"),
        generator=str(save_sd3(tmp_path / "sd3", dynamic=True)),
        generator_options=GeneratorConfig(rank=2, alpha=8),
        monitors=MonitorConfig(judge=""),
        side=32,
        eval_photos=1,
        eval_steps=1,
    )
    trainer = RLTrainer(config)
    for found, tokens in ((trainer, 4), (RLTrainer(replace(config, side=64)), 16)):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(found.generator.scheduler.config)
        scheduler.set_timesteps(4, mu=0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256))
        assert found.generator.steps(4).s == pytest.approx(scheduler.sigmas.tolist())
    trainer.save()
    assert RLTrainer(replace(config, generator_options=replace(config.generator_options, shift_side=32))).resume()
    other = replace(config, generator_options=replace(config.generator_options, shift_side=64))
    with pytest.raises(ValueError, match=r"made with generator_fing.*, generator_options\.shift_side=None \(now 64\);"):
        RLTrainer(other).resume()


@pytest.mark.parametrize("name", TRAINED)
def test_options_in_the_loop(saved, photo_set, tmp_path, name):
    """Resumed to the bit; each collection has one update, before which every ratio is 1."""
    layout, algorithm, options, others = TRAINED[name]
    settings = {**SMALL[algorithm], "micro_batch": 3}  # of 4 rows: the shapes of its forward passes differ
    config = RLConfig(
        data=(str(photo_set),),
        out=str(tmp_path / "run"),
        generator=str(saved[layout]),
        generator_options=GeneratorConfig(**options),
        algorithm=KINDS[algorithm](**settings),
        stages=(StageConfig(steps=3, lr=1e-2),),
        monitors=MonitorConfig(judge=""),
        **{"batch": 2, "side": 32, "save_every": 1, "keep": 3, "eval_every": 3, "eval_photos": 1, "eval_steps": 1}
        | others,
    )
    whole = train(config)
    broken = replace(config, out=str(tmp_path / "broken"), save_every=2)
    with pytest.raises(KeyError, match="killed"):
        train(broken, [Kill(3)])
    resumed = train(broken)
    log = lines(tmp_path / "run")
    assert log == lines(tmp_path / "broken")
    before = load_generator(saved[layout], config.generator_options).trained_state()
    moved = [name for name, tensor in before.items() if not torch.equal(whole.trained_state()[name], tensor)]
    assert len(moved) > 0.8 * len(before)  # nothing depends on the text's side of SD3's last block
    for key, tensor in whole.trained_state().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, resumed.trained_state()[key]), key
    if algorithm == "grpo":
        assert [line["ratio"] for line in log[1:]] == [1.0] * 3
        assert [line["kl_loss"] > 0 for line in log[1:]] == [False, True, True]  # the reference stays where it was
    if name in ("guidance", "tiles"):  # decide what is made
        plain = train(replace(config, out=str(tmp_path / "plain"), generator_options=GeneratorConfig(**ADAPTER)))
        assert (whole.guided, plain.guided) == (name == "guidance", False)
        assert lines(tmp_path / "plain")[1]["reward_avg"] != log[1]["reward_avg"]
    if name == "bfloat16":
        assert whole.denoiser.proj_out.weight.dtype == torch.bfloat16
    if name == "average":
        average = before
        for step in range(3):
            state = torch.load(tmp_path / "run" / f"checkpoint-{step + 1}" / "state.pt", weights_only=True)["generator"]
            share = min(0.9, (1 + step) / (10 + step))
            average = {key: share * tensor + (1 - share) * state[key] for key, tensor in average.items()}
        for key, tensor in whole.trained_state().items():
            torch.testing.assert_close(tensor, average[key])
    if name == "full":
        assert len(moved) == len(list(whole.denoiser.parameters()))
        part = type(whole.denoiser).from_pretrained(tmp_path / "run" / "generator", subfolder="unet")
        assert all(torch.equal(tensor, part.state_dict()[key]) for key, tensor in whole.denoiser.state_dict().items())


@torch.no_grad()
def answer(generator):
    """A velocity."""
    draw = torch.Generator().manual_seed(0)
    given = Batch(torch.rand(1, 3, 8, 8, generator=draw), torch.tensor([3]))
    x = torch.randn(1, generator.channels, 32 // generator.stride, 32 // generator.stride, generator=draw)
    return generator.velocity(x, torch.tensor([0.5]), generator.condition(given))
