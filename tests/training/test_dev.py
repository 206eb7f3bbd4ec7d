import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finpercep.evaluation import evaluate_all, reward_judge
from finpercep.models import RewardModel
from finpercep.training.climbing import ClimbConfig
from finpercep.training.dev import DevEvaluation, quality
from finpercep.training.scenes import training_scenes
from finpercep.training.trainer import RewardTrainer, train
from tests.data.conftest import write_scenes
from tests.training.test_trainer import Recorder, config, full  # noqa: F401


@pytest.fixture
def measured(config, tmp_path):  # noqa: F811
    """Every second of four scenes is held out, and measured after each of four steps."""
    data = write_scenes(tmp_path / "four", 4)
    return dataclasses.replace(config, data=str(data), dev_every=2, evaluate_every=1, log_every=100)


def logs(recorder):
    return {entry[1]: entry[2] for entry in recorder.told if entry[0] == "log"}


def test_the_best_model_is_kept(measured):
    recorder = Recorder()
    train(measured, [recorder])
    found = {step: quality({k: v for k, v in row.items() if k[:4] == "dev/"}) for step, row in logs(recorder).items()}
    assert sorted(found) == [1, 2, 3, 4]
    assert "loss" in logs(recorder)[4]  # the last step is logged, too
    best = RewardModel.from_pretrained(f"{measured.out}/best")
    scenes = training_scenes(measured)[1]
    overall = evaluate_all({"best": reward_judge(best)}, scenes)[0].overall
    figures = {f"dev/{name}": overall[name] for name in ("gt_over_sr", "syn_over_sr", "gt_over_syn")}
    assert quality(figures) == pytest.approx(max(found.values()))


def test_figures_of_a_model_with_a_map(measured):
    train(dataclasses.replace(measured, evaluate_every=0))
    trainer = RewardTrainer(full(measured))
    before = trainer.model.fingerprint
    figures = trainer.evaluate()
    names = ["gt_over_sr", "syn_over_sr", "gt_over_syn", "cc", "auc", "clean_mean"]
    assert list(figures) == [f"dev/{name}" for name in names]
    model = RewardModel.from_pretrained(f"{measured.out}-full/best")
    overall = evaluate_all({"": reward_judge(model)}, training_scenes(measured)[1])[0].overall
    assert list(figures.values()) == pytest.approx([overall[name] for name in names])
    assert trainer.model.training
    assert trainer.model.fingerprint == before
    assert quality(figures) == pytest.approx(sum(overall[name] for name in names[:5]) / 5)


def test_scenes_are_spread_and_needed(measured):
    scenes = training_scenes(dataclasses.replace(measured, dev_every=0))[0]
    chosen = DevEvaluation(dataclasses.replace(measured, evaluate_scenes=2), scenes).scenes
    assert [scene.id for scene in chosen] == ["scene0", "scene2"]
    chosen = DevEvaluation(dataclasses.replace(measured, evaluate_scenes=3), scenes).scenes
    assert [scene.id for scene in chosen] == ["scene0", "scene1", "scene2"]
    chosen = DevEvaluation(measured, [*scenes, *scenes[:3]]).scenes
    assert [scene.id for scene in chosen] == [f"scene{i}" for i in (0, 1, 2, 3, 0, 1, 2)]
    chosen = DevEvaluation(dataclasses.replace(measured, evaluate_scenes=4), [*scenes, *scenes[:3]]).scenes
    assert [scene.id for scene in chosen] == ["scene0", "scene1", "scene3", "scene1"]  # not the first four alone
    with pytest.raises(
        ValueError, match=r"^evaluate_every: expected held-out scenes with results .*, got dev_every=0$"
    ):
        RewardTrainer(dataclasses.replace(measured, dev_every=0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_is_exact_with_everything(measured, precision):
    """Climbed images, a moving average, evaluation: the saved and the best model, and the state, to the bit."""
    train(dataclasses.replace(measured, evaluate_every=0))
    climb = ClimbConfig(climbed=0.5, climb_networks=0.5, climb_steps=(1, 2))
    whole = dataclasses.replace(full(measured), steps=6, climb=climb, ema=0.9, precision=precision, save_every=3)
    train(whole)
    stopped = dataclasses.replace(whole, out=whole.out + "-stopped")
    trainer = RewardTrainer(stopped)
    batches = trainer.batches()
    for _ in range(3):
        trainer.step(next(batches))
        trainer.evaluate()
    trainer.save()
    trainer.step(next(batches))  # is lost
    model = train(stopped)
    for name in ("model.safetensors", "best/model.safetensors"):
        assert (Path(whole.out) / name).read_bytes() == (Path(stopped.out) / name).read_bytes()
    one, other = (torch.load(f"{run.out}/state.pt", weights_only=True) for run in (whole, stopped))
    assert one["best"] == other["best"]
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    assert RewardModel.from_pretrained(whole.out).fingerprint == model.fingerprint


def test_what_is_saved_is_the_moving_average(config):  # noqa: F811
    config = dataclasses.replace(config, ema=0.5, steps=3, save_every=100)
    trainer = RewardTrainer(config)
    names = [name for name, tensor in trainer.model.state_dict().items() if tensor.is_floating_point()]
    expected = {name: trainer.model.state_dict()[name].clone() for name in names}
    for step, batch in enumerate(trainer.batches()):
        trainer.step(batch)
        decay = min(0.5, (1 + step) / (10 + step))
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * trainer.model.state_dict()[name]
    trainer.save()
    saved = load_file(Path(config.out) / "model.safetensors")
    for name in names:
        torch.testing.assert_close(saved[name], expected[name])
    weight = "encoder.stem.mix.0.weight"
    assert not torch.equal(trainer.model.state_dict()[weight], saved[weight])  # it is trained on as it was
    assert trainer.finish().fingerprint == RewardModel.from_pretrained(config.out).fingerprint


def test_bf16_leaves_a_convolutional_model_in_fp32(config):  # noqa: F811
    train(config)
    losses, autocast = [], []
    for precision in ("fp32", "bf16"):
        trainer = RewardTrainer(dataclasses.replace(full(config), precision=precision))
        trainer.model.register_forward_pre_hook(lambda *_: autocast.append(torch.is_autocast_enabled("cpu")))
        terms = trainer.step(next(iter(trainer.batches())))
        assert all(term.dtype == torch.float32 for term in terms.values())
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in trainer.model.parameters())
        losses.append({name: term.item() for name, term in terms.items()})
    assert losses[1] == losses[0]
    half = len(autocast) // 2
    assert autocast == [False] * half + [True] * half  # that of the caller's, which a transformer would obey


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "fp16"}, "precision: expected fp32 or bf16, got 'fp16'"), ({"ema": 1.0}, "ema: expected a decay")],
)
def test_settings_that_do_not_exist(config, options, message):  # noqa: F811
    with pytest.raises(ValueError, match=f"^{message}"):
        dataclasses.replace(config, **options)
