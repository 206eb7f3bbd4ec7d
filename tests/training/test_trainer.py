import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from finpercep.data.triplets import Triplet, TripletConfig, Triplets
from finpercep.models import CLIPIQA, RewardModel
from finpercep.models.presets import PRESETS
from finpercep.runs.lock import FolderInUseError, folder_lock
from finpercep.runs.trackers import TensorBoard
from finpercep.training import climbers, climbing, climbing_networks
from finpercep.training import trainer as trainer_module
from finpercep.training.climbers import Climbed
from finpercep.training.climbing import ClimbConfig
from finpercep.training.config import RewardTrainConfig
from finpercep.training.losses import LossWeights, raise_odds
from finpercep.training.trainer import RewardTrainer, parameter_groups, train
from tests.data.conftest import write_scenes
from tests.models.conftest import write_clip

ENCODER = {"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True}


@pytest.fixture
def config(tmp_path):
    write_scenes(tmp_path / "data", 3)
    return RewardTrainConfig(
        data=str(tmp_path / "data"),
        out=str(tmp_path / "rm0"),
        steps=4,
        batch=2,
        lr_encoder=1e-3,
        lr_new=1e-3,
        warmup=1,
        encoder=ENCODER,
        decoder={"width": 8, "norm": True},
        triplets=TripletConfig(crop=32),
        save_every=2,
        workers=0,
    )


def full(config):
    return dataclasses.replace(config, anchor=config.out, out=config.out + "-full")


def test_base_then_full_model(config, tmp_path):
    base = train(config)
    assert base.decoder is None
    assert base.score(torch.rand(3, 32, 32)).map is None
    model = train(full(config))
    loaded = RewardModel.from_pretrained(config.out + "-full")
    assert loaded.fingerprint == model.fingerprint != base.fingerprint
    assert json.loads((tmp_path / "rm0-full" / "train.json").read_text())["steps"] == 4
    assert sorted(path.name for path in (tmp_path / "rm0-full").iterdir()) == [
        "config.json",
        "model.safetensors",
        "state.pt",
        "train.json",
    ]


def test_full_model_starts_from_its_anchor(config):
    train(config)
    trainer = RewardTrainer(full(config))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trainer.model.eval()(images).score, trainer.base(images).score)
    anchor = RewardModel.from_pretrained(config.out, fold=False).state_dict()
    state = trainer.model.state_dict()
    encoder = [name for name in anchor if name.startswith("encoder.")]
    assert all(torch.equal(state[name], anchor[name]) for name in encoder)
    assert any(name.startswith("decoder.") for name in state)
    assert not any(p.requires_grad for p in trainer.base.parameters())


def norms(model):
    return {name: value.clone() for name, value in model.state_dict().items() if "running_" in name}


@pytest.mark.parametrize("stop", [2, 5])
def test_resume_is_exact(config, stop):
    """Stopped before the normalizations are frozen (step 5 of 6), and after."""
    train(config)
    config = dataclasses.replace(full(config), steps=6)
    straight, kept = RewardTrainer(config), []
    for batch in straight.batches():
        straight.step(batch)
        kept.append(norms(straight.model))
    assert kept[4].keys() == kept[5].keys() != set()
    assert not any(torch.equal(kept[3][name], kept[4][name]) for name in kept[4])
    assert all(torch.equal(kept[4][name], kept[5][name]) for name in kept[4])
    stopped = RewardTrainer(config)
    batches = stopped.batches()
    for _ in range(stop):
        stopped.step(next(batches))
    stopped.save()
    resumed = RewardTrainer(config)
    assert resumed.resume()
    for batch in resumed.batches():
        resumed.step(batch)
    assert resumed.done == 6
    assert resumed.model.fingerprint == straight.model.fingerprint != stopped.model.fingerprint


def test_resume_refuses_other_settings(config):
    train(config)
    with pytest.raises(ValueError, match=r"state\.pt: made with batch=2 \(now 3\)"):
        train(dataclasses.replace(config, batch=3))


def test_a_state_older_than_a_setting_is_resumed(config):
    """It had the default; where that is not what is asked for now, the run is refused."""
    train(config)
    path = Path(config.out) / "state.pt"
    state = torch.load(path, weights_only=True)
    del state["settings"]["triplets"]["target_alpha"], state["settings"]["epochs"]
    torch.save(state, path)
    assert RewardTrainer(config).resume()
    other = dataclasses.replace(config, triplets=dataclasses.replace(config.triplets, target_alpha=1.0))
    with pytest.raises(ValueError, match=r"made with triplets\.target_alpha=0\.25 \(now 1\.0\)"):
        RewardTrainer(other).resume()


def test_a_state_older_than_climbing_networks_is_resumed(config):
    train(config)
    path = Path(config.out) / "state.pt"
    state = torch.load(path, weights_only=True)
    assert state.pop("networks") == []
    del state["settings"]["climb"]["climb_networks"]
    torch.save(state, path)
    assert RewardTrainer(config).resume()
    other = dataclasses.replace(config, climb=ClimbConfig(climb_networks=0.5))
    with pytest.raises(ValueError, match=r"made with climb\.climb_networks=0\.0 \(now 0\.5\)"):
        RewardTrainer(other).resume()


def test_resume_refuses_other_scenes_anchor_or_init(config, tmp_path):
    other = dataclasses.replace(config, seed=1, out=str(tmp_path / "other"))
    train(config)
    train(other)
    train(full(config))
    train(full(other))
    rm0, rm1 = config.out, config.out + "-full"
    run = dataclasses.replace(config, anchor=rm0, init=rm1, out=str(tmp_path / "run"))
    train(run)
    fewer = write_scenes(tmp_path / "fewer", 2)
    cases = {"data": str(fewer), "anchor": other.out, "init": other.out + "-full"}
    for name, path in cases.items():
        with pytest.raises(ValueError, match=rf"state\.pt: made with {name}_fingerprint='\w{{16}}' \(now '"):
            RewardTrainer(dataclasses.replace(run, **{name: path})).resume()
    moved = {name: str(tmp_path / f"moved-{name}") for name in cases}
    for name in cases:
        shutil.copytree(getattr(run, name), moved[name])
    assert RewardTrainer(dataclasses.replace(run, **moved)).resume()


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_a_damaged_state_is_one_line(config, tmp_path, size):
    train(config)
    state = tmp_path / "rm0" / "state.pt"
    state.write_bytes(state.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"^\S*rm0/state\.pt: expected the state of a run, got \S") as error:
        train(config)
    assert "\n" not in str(error.value)
    torch.save({"step": 3}, state)
    with pytest.raises(
        ValueError,
        match=r"state\.pt: expected the state of a run, got one without model, optimizer, schedule, set",
    ):
        train(config)


def test_the_state_is_read_on_the_cpu(config, monkeypatch):
    """AdamW's step counters belong there, whatever the device of the model."""
    train(config)
    load, places = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **o: places.append(o["map_location"]) or load(*a, **o))
    assert RewardTrainer(config).resume()
    assert places == ["cpu"]


def test_settings_are_those_of_the_model_and_stay_when_resumed(config, tmp_path):
    train(config)
    train(full(config))
    again = dataclasses.replace(
        config, anchor=config.out, init=config.out + "-full", decoder={"width": "full"}, out=str(tmp_path / "again")
    )
    trainer = RewardTrainer(again)
    train(again)
    settings = json.loads((tmp_path / "again" / "train.json").read_text())
    assert settings["decoder"] == {"width": 8, "norm": True}
    assert settings["data"] == config.data
    assert settings["data_fingerprint"] == trainer.fingerprints["data_fingerprint"]
    assert settings["anchor_fingerprint"] == RewardModel.from_pretrained(config.out).fingerprint
    init = RewardModel.from_pretrained(config.out + "-full", fold=False)
    assert settings["init_fingerprint"] == init.fingerprint
    moved = shutil.copytree(config.data, tmp_path / "moved")
    train(dataclasses.replace(again, data=str(moved), log_every=1))
    assert json.loads((tmp_path / "again" / "train.json").read_text()) == settings


def test_others_may_read_the_weights_who_may_read_the_configuration(config, tmp_path):
    train(config)
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "rm0").iterdir()}
    assert files["model.safetensors"] == files["config.json"] == files["train.json"]
    assert not any(name.endswith((".part", ".tmp")) for name in files)


def test_each_point_is_logged_once(config, tmp_path):
    """A run that went on after its last save, was killed, and is resumed from that save."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = dataclasses.replace(config, log_every=1, save_every=2)
    batches = RewardTrainer.batches

    def killed(trainer):
        for number, batch in enumerate(batches(trainer)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RewardTrainer, "batches", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, [TensorBoard(config.out)])
    for number, path in enumerate((tmp_path / "rm0").glob("events*")):
        path.rename(path.with_name(f"events.out.tfevents.{number}"))  # the first by name, as by time
    train(config, [TensorBoard(config.out)])
    events = accumulator.EventAccumulator(str(tmp_path / "rm0"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_saves_the_step_that_is_being_made(config, tmp_path, monkeypatch, workers):
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    train(whole)
    config = dataclasses.replace(config, workers=workers, save_every=100)
    step = RewardTrainer.step

    def interrupted(trainer, batch):
        if trainer.done == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, batch)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have set it to ignore
    try:
        with monkeypatch.context() as patch:
            patch.setattr(RewardTrainer, "step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(config)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert torch.load(tmp_path / "rm0" / "state.pt", weights_only=True)["step"] == 2
    train(config)
    model, expected = (load_file(Path(c.out) / "model.safetensors") for c in (config, whole))
    assert all(torch.equal(model[name], expected[name]) for name in expected)


def test_a_worker_that_ends_loses_no_step(config, tmp_path, monkeypatch):
    """It ends in the middle of a step, which is made to its end and saved."""
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    train(whole)
    config = dataclasses.replace(config, workers=1, save_every=100)
    step, item, done = RewardTrainer.step, Triplets.__getitem__, []

    def killed(triplets, index):
        if index >= 4:  # of the third step
            os.kill(os.getpid(), signal.SIGKILL)
        return item(triplets, index)

    def slow(trainer, batch):
        time.sleep(1.0)
        losses = step(trainer, batch)
        done.append(trainer.done)
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(Triplets, "__getitem__", killed)
        patch.setattr(RewardTrainer, "step", slow)
        with pytest.raises(ChildProcessError, match=r"^workers: expected the 1 that prepare triplets to go on"):
            train(config)
    assert torch.load(tmp_path / "rm0" / "state.pt", weights_only=True)["step"] == done[-1]
    train(config)
    model, expected = (load_file(Path(c.out) / "model.safetensors") for c in (config, whole))
    assert all(torch.equal(model[name], expected[name]) for name in expected)


def test_map_losses_weigh_restored_images_and_raise_the_odds(config):
    train(config)
    trainer = RewardTrainer(dataclasses.replace(full(config), loss=LossWeights(restored=0.5, fault_odds=3.0)))
    trainer.model.eval()
    batch = Triplet(*next(iter(trainer.batches())))
    maps = raise_odds(trainer.model(torch.cat(batch[:3])).map, 3.0).chunk(3)
    gt, syn, sr = (
        (m - target).abs().mean() for m, target in zip(maps, (0.0, batch.target_syn, batch.target_sr), strict=True)
    )
    torch.testing.assert_close(trainer.losses(batch)["map"], (gt + syn + 0.5 * sr) / 3)


def test_without_anchor_a_full_model_keeps_its_level(config):
    train(config)
    train(full(config))
    config = dataclasses.replace(config, init=config.out + "-full", out=config.out + "-next")
    trainer = RewardTrainer(config)
    assert set(trainer.losses(Triplet(*next(iter(trainer.batches()))))) == {"rank", "map", "entropy", "level"}


def test_climbed_images_have_the_target_of_the_triplets(config):
    triplets = dataclasses.replace(config.triplets, features="none", target_scale=0.5)
    objective = RewardTrainer(dataclasses.replace(config, triplets=triplets)).objective
    before, old = torch.full((1, 3, 32, 32), 0.5), torch.zeros(1, 1, 32, 32)
    climbed = Climbed(torch.tensor([0]), before, before + 0.1, old, torch.ones(1, 1, 1, 1))
    assert torch.allclose(objective._target_after(climbed), torch.full_like(old, 0.2), atol=1e-5)


def test_climbed_images_are_learned_from(config):
    train(config)
    train(full(config))
    start = config.out + "-full"
    climb = ClimbConfig(climbed=1.0, climb_steps=(2, 2), climb_rate=(20.0, 20.0), climb_smooth=0.0)
    trainer = RewardTrainer(dataclasses.replace(config, init=start, out=config.out + "-next", climb=climb, steps=12))
    batch = Triplet(*next(iter(trainer.batches())))
    first = trainer.losses(batch)["climb"].item()
    assert first > 0.01  # what climbing did is seen as no fault yet
    for _ in range(8):
        trainer.step(batch)
    trainer.done, trainer.objective.climbers.pool = 0, None  # the same images, climbed again
    assert trainer.losses(batch)["climb"].item() < first


def test_scenes_of_several_folders(config, tmp_path):
    more = write_scenes(tmp_path / "more", 2, sources=("other",))
    config = dataclasses.replace(config, data=(config.data, str(more)))
    count = len(RewardTrainer(dataclasses.replace(config, data=config.data[:1])).triplets.scenes)
    assert len(RewardTrainer(config).triplets.scenes) == count + 2
    with pytest.raises(ValueError, match=r"^leave_out: expected some of the sources \[.*'other'.*\], got \['none'\]$"):
        RewardTrainer(dataclasses.replace(config, leave_out=["none"]))


def test_anchor_and_init_must_be_of_the_right_kind(config):
    train(config)
    train(full(config))
    rm0, rm1 = config.out, config.out + "-full"
    config.out += "-next"
    with pytest.raises(ValueError, match=r"^anchor: expected RM_0, a model without a map, got .*rm0-full$"):
        RewardTrainer(dataclasses.replace(config, anchor=rm1))
    with pytest.raises(ValueError, match=r"^init: expected a model with a map, got .*rm0; as anchor alone"):
        RewardTrainer(dataclasses.replace(config, anchor=rm0, init=rm0))
    assert RewardTrainer(dataclasses.replace(config, init=rm0)).model.decoder is None  # RM_0 goes on


def test_training_lowers_the_loss(config):
    trainer = RewardTrainer(dataclasses.replace(config, steps=30, batch=4))
    losses = [trainer.step(batch)["rank"] for batch in trainer.batches()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def weights(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def same(trainer, before):
    return all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_loss_that_is_not_finite_stops_the_run(config):
    trainer = RewardTrainer(config)
    before = weights(trainer)
    batch = next(iter(trainer.batches()))
    trainer.step(batch._replace(gt=batch.gt * float("nan")))
    assert same(trainer, before)
    trainer.step(batch)  # what comes before it is asked changes nothing either
    assert same(trainer, before)
    for ask in (trainer.check, trainer.save):
        with pytest.raises(FloatingPointError, match=r"^loss at step 0 is nan; .*rm0 is kept$"):
            ask()
    assert not Path(config.out).exists()


def test_a_map_that_is_not_finite_stops_the_run(config):
    """Torch's cross-entropy would raise an error of its own; on CUDA it ends the context."""
    trainer = RewardTrainer(dataclasses.replace(config, init="finpercep-tiny"))
    batch = next(iter(trainer.batches()))
    trainer.step(batch._replace(syn=batch.syn * float("nan")))
    with pytest.raises(FloatingPointError, match=r"^loss at step 0 is nan; .*rm0 is kept$"):
        trainer.check()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradient_that_is_not_finite_stops_the_run(config, value):
    trainer = RewardTrainer(config)
    batch = next(iter(trainer.batches()))
    trainer.step(batch)
    before = weights(trainer)
    next(trainer.model.head.parameters()).register_hook(lambda gradient: gradient * value)
    trainer.step(batch)
    assert same(trainer, before)
    with pytest.raises(FloatingPointError, match=r"^norm of the gradient at step 1 is (nan|inf); .*rm0 is kept$"):
        trainer.check()


def test_what_was_saved_before_a_loss_that_is_not_finite_stays(config, monkeypatch):
    """Found at the next logging or saving, whichever comes first: here saving, two steps later."""
    losses, files = RewardTrainer.losses, {}

    def poisoned(trainer, batch):
        terms = losses(trainer, batch)
        if trainer.done == 2:
            files.update({path.name: path.read_bytes() for path in Path(config.out).iterdir() if path.suffix})
            terms["rank"] = terms["rank"] * float("nan")
        return terms

    monkeypatch.setattr(RewardTrainer, "losses", poisoned)
    with pytest.raises(FloatingPointError, match=r"^loss at step 2 is nan; .*rm0 is kept$"):
        train(config)
    assert sorted(files) == ["config.json", "model.safetensors", "state.pt", "train.json"]
    assert {path.name: path.read_bytes() for path in Path(config.out).iterdir()} == files
    assert torch.load(Path(config.out) / "state.pt", weights_only=True)["step"] == 2


class HostReads(TorchDispatchMode):
    """Counts where a tensor's value is read on the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device(config, monkeypatch):
    train(config)
    trainer = RewardTrainer(full(config))
    batch = next(iter(trainer.batches()))
    trainer.step(batch)  # sets up the optimizer
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)  # reads its own step counters, which lie on the host
    with HostReads() as reads:
        losses = trainer.step(batch)
    assert reads.count == 0
    assert set(losses) == {"loss", "map", "entropy", "rank", "align"}
    with HostReads() as reads:
        trainer.check()
    assert reads.count > 0


class Recorder:
    """A monitor that remembers what it was told."""

    def __init__(self):
        self.told = []

    def start(self, lines, *, done, total):
        self.told.append(("start", lines, done, total))

    def log(self, step, figures):
        self.told.append(("log", step, figures))

    def close(self):
        self.told.append(("close",))


def test_monitors_are_told_what_happens(config):
    first, second = Recorder(), Recorder()
    train(dataclasses.replace(config, log_every=3), [first])
    start, *logs, close = first.told
    assert start[1] == ["RM_0 (score only): 0.01 M parameters, 3 scenes"]
    assert start[2:] == (0, 4)
    assert [log[1] for log in logs] == [3, 4]
    assert all(set(log[2]) == {"loss", "rank", "level"} for log in logs)
    assert logs[0][2]["loss"] == pytest.approx(0.8 * logs[0][2]["rank"] + logs[0][2]["level"])
    assert close == ("close",)
    train(config, [second])
    assert second.told == [
        ("start", [start[1][0], f"resumed at step 4 from {config.out}"], 4, 4),
        ("close",),
    ]


def test_training_needs_no_terminal_and_no_tensorboard(config, monkeypatch):
    for name in [*sys.modules]:
        if name.split(".")[0] in ("rich", "tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("rich", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    train(config)
    assert (Path(config.out) / "model.safetensors").is_file()


def test_two_runs_do_not_share_a_folder(config):
    train(config)
    before = {path.name: path.read_bytes() for path in Path(config.out).iterdir()}
    with folder_lock(config.out), pytest.raises(FolderInUseError, match=f"in use by process {os.getpid()} "):
        train(dataclasses.replace(config, steps=8))
    assert {path.name: path.read_bytes() for path in Path(config.out).iterdir()} == before


def test_clip_iqa_is_the_anchor_of_a_model_around_clip(config, tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    clip = write_clip(tmp_path / "clip", layers=12, patch=16)
    monkeypatch.setitem(PRESETS, "finpercep-vit-b-16", PRESETS["finpercep-vit-b-16"]._replace(clip=str(clip)))
    anchored = dataclasses.replace(config, anchor="finpercep-vit-b-16", batch=1)
    with pytest.raises(ValueError, match=r"^init: expected a model with a map, since none grows from a CLIP-IQA "):
        RewardTrainer(anchored)
    anchored.init = "finpercep-vit-b-16"
    with pytest.warns(UserWarning, match="untrained"):
        trainer = RewardTrainer(anchored)
    batch = next(iter(trainer.batches()))
    base = CLIPIQA.from_clip(clip)
    gt = trainer.model.eval()(batch.gt).score
    torch.testing.assert_close(trainer.losses(batch)["align"], (gt - base(batch.gt).score).abs().mean())
    assert not any(p.requires_grad for p in trainer.base.parameters())
    before = trainer.model.fingerprint
    trainer.step(batch)
    trainer.save()
    assert RewardModel.from_pretrained(config.out).fingerprint == trainer.model.fingerprint != before
    assert trainer.base.fingerprint == base.fingerprint == trainer.fingerprints["anchor_fingerprint"]
    base.save_pretrained(tmp_path / "clip-iqa")
    trainer.model.save_pretrained(tmp_path / "begun")
    saved = dataclasses.replace(
        anchored, anchor=str(tmp_path / "clip-iqa"), init=str(tmp_path / "begun"), out=str(tmp_path / "next")
    )
    assert set(RewardTrainer(saved).step(batch)) == {"loss", "map", "entropy", "rank", "align"}


def test_parameter_groups_are_the_papers(config):
    defaults = RewardTrainConfig(data="", out="")
    groups = parameter_groups(RewardModel(ENCODER, {"width": 8}), defaults)
    model_size = sum(p.numel() for p in RewardModel(ENCODER, {"width": 8}).parameters())
    assert [g["lr"] for g in groups] == [1e-5, 1e-4]
    assert sum(p.numel() for g in groups for p in g["params"]) == model_size
    optimizer = RewardTrainer(config).optimizer
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["weight_decay"] == 1e-4


def test_a_step_copies_to_its_device_by_what_does_not_wait(config, monkeypatch):
    """`uploaded` pins; a copy of its own, of the triplets or of climbers, would wait for a GPU."""
    asked = []
    for module in (trainer_module, climbers, climbing, climbing_networks):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "uploaded", lambda x, device, name=name: (asked.append(name), x.to(device))[1])
    climb = ClimbConfig(climbed=1.0, climb_networks=1.0, climb_rounds=1)
    trainer = RewardTrainer(dataclasses.replace(config, climb=climb))
    batches = trainer.batches()
    for _ in range(2):
        trainer.step(next(batches))
    steps = asked.count("climbing") // 2
    assert asked.count("trainer") == 2 * len(Triplet._fields)
    assert (steps, asked.count("climbers")) == (1, 3 + 4)  # the first step fills the pool, the second starts anew
    assert asked.count("climbing_networks") == 2 * 3
