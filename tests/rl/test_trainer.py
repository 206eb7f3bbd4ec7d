"""The loop: every algorithm in it, its log, and a resumed run that ends as the one that was never stopped."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finpercep.io.pictures import as_picture, save_image
from finpercep.models import RewardOutput
from finpercep.rewards import Mixture, StageReward, load_reward
from finpercep.rl import curriculum, measurement, remarks
from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.curriculum import CurriculumConfig
from finpercep.rl.dpo import DPOConfig
from finpercep.rl.generators import GeneratorConfig, SRTiny
from finpercep.rl.generators.latent import LatentGenerator
from finpercep.rl.grpo import GRPOConfig
from finpercep.rl.held_out import HeldOut
from finpercep.rl.loop import train
from finpercep.rl.monitors import Alarm, MonitorConfig
from finpercep.rl.nft import NFTConfig
from finpercep.rl.photos import load_pairs
from finpercep.rl.refl import ReFLConfig
from finpercep.rl.refresh import RefreshConfig
from finpercep.rl.trainer import RLTrainer
from finpercep.runs.random_state import seed_others, state_of_others
from finpercep.runs.trackers import TensorBoard
from tests.rl.conftest import Kill
from tests.rl.toy import Red

ALGORITHMS = {
    "refl": ReFLConfig(steps=2, late=1, micro_batch=1),
    "dpo": DPOConfig(steps=2, group_size=2, micro_batch=1),
    "grpo": GRPOConfig(steps=3, group_size=2, micro_batch=3, beta=0.1),
    "nft": NFTConfig(steps=2, group_size=2, micro_batch=3),
}


@pytest.fixture
def config(photo_set, tmp_path):
    torch.manual_seed(1)
    model = SRTiny((16, 24), 1)
    for parameter in model.network.leave.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "generator")
    return RLConfig(
        data=(str(photo_set),),
        out=str(tmp_path / "run"),
        generator=str(tmp_path / "generator"),
        stages=(StageConfig(steps=3, lr=1e-3), StageConfig(steps=2, lr=5e-4, score_weight=1.0, map_weight=0.0)),
        batch=2,
        side=32,
        save_every=2,
        eval_every=3,
        eval_photos=2,
        eval_steps=2,
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


RESUMED = {**ALGORITHMS, "nft, old policy": replace(ALGORITHMS["nft"], old_decay=0.5, old_rate=0.2)}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_is_the_run_that_was_never_stopped(config, tmp_path, name):
    """Killed after step 3, saved at 2: steps 3 to 5 come again, to the bit."""
    config = replace(config, algorithm=RESUMED[name], updates=2)
    whole = train(config)
    broken = replace(config, out=str(tmp_path / "broken"))

    with pytest.raises(KeyError, match="killed"):
        train(broken, [Kill()])
    assert [line["step"] for line in lines(tmp_path / "broken")] == [0, 1, 2, 3]
    resumed = train(broken)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    assert lines(tmp_path / "run") == lines(tmp_path / "broken")
    start = SRTiny.from_pretrained(config.generator)
    assert resumed.fingerprint != start.fingerprint


def test_a_state_that_knows_no_old_policy_goes_on_without_one(config):
    config = replace(config, algorithm=ALGORITHMS["nft"], monitors=MonitorConfig(judge=""))
    trainer = RLTrainer(config)
    trainer.step()
    trainer.save()
    file = Path(config.out) / "checkpoint-1" / "state.pt"
    state = torch.load(file, weights_only=True)
    del state["algorithm"], state["settings"]["algorithm"]["old_decay"], state["settings"]["algorithm"]["old_rate"]
    torch.save(state, file)
    resumed = RLTrainer(config)
    assert resumed.resume()
    assert resumed.step() == trainer.step()
    with pytest.raises(ValueError, match=r"made with algorithm\.old_decay=0\.0 \(now 0\.5\)"):
        RLTrainer(replace(config, algorithm=replace(config.algorithm, old_decay=0.5))).resume()


@pytest.fixture
def rich(config):
    """Everything that has a state: refreshes, a blend, an average of the weights, few checkpoints."""
    return replace(
        config,
        algorithm=ALGORITHMS["grpo"],
        refresh=RefreshConfig(every=2, steps=2, batch=2, first_stage=0),
        curriculum=CurriculumConfig("blend", blend_steps=3, optimizer="reset"),
        monitors=MonitorConfig(judge="", patience=1, best="severity"),
        ema=0.5,
        keep=2,
        save_every=1,
        eval_every=2,
    )


def test_a_rich_run_resumes_exactly(rich, tmp_path):
    """Killed after steps 1 and 4, between a refresh and its next save among them."""
    whole = train(rich)
    broken = replace(rich, out=str(tmp_path / "broken"), save_every=2)

    for at in (1, 3, 4):
        with pytest.raises(KeyError, match="killed"):
            train(replace(broken), [Kill(at)])
    resumed = train(broken)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    log = lines(tmp_path / "run")
    assert log == lines(tmp_path / "broken")
    assert [line["version"] for line in log] == [0, 0, 0, 1, 1, 2]
    assert len({line["reward"] for line in log}) == 4  # two stages, of which the model is refreshed twice
    assert [line.get("blend") for line in log] == [None] * 4 + [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert ["refresh/photo" in line for line in log] == [False, False, False, True, False, True]
    saved = sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*"))
    assert saved == ["checkpoint-4", "checkpoint-5"]
    averaged = SRTiny.from_pretrained(tmp_path / "run" / "generator")
    assert averaged.fingerprint == SRTiny.from_pretrained(tmp_path / "run" / "checkpoint-5" / "generator").fingerprint
    assert averaged.fingerprint == whole.fingerprint
    raw = torch.load(tmp_path / "run" / "checkpoint-5" / "state.pt", weights_only=True)["generator"]
    assert any(not torch.equal(tensor, whole.trained_state()[name]) for name, tensor in raw.items())
    best = [SRTiny.from_pretrained(tmp_path / name / "best").fingerprint for name in ("run", "broken")]
    assert best[0] == best[1]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "GRPO of" in page
    assert page.count("<img") == 5  # curves, and four measurements


def test_refreshed_rewards_are_left_as_models(config, tmp_path):
    """Those that the log names, beside the generator and in each checkpoint; without refresh there are none."""
    stages = (StageConfig("finpercep-tiny/1", 2, 1e-3), StageConfig("finpercep-tiny/2", 2, 1e-3, map_weight=0.25))
    config = replace(config, algorithm=ALGORITHMS["refl"], stages=stages, save_every=1, eval_every=9)
    config = replace(config, keep=2, monitors=MonitorConfig(judge=""))
    out, refresh = tmp_path / "run", RefreshConfig(every=1, steps=1, batch=1, first_stage=0)
    train(replace(config, out=str(tmp_path / "plain")))
    assert not list((tmp_path / "plain").rglob("refreshed"))
    with pytest.raises(KeyError, match="killed"):
        train(replace(config, refresh=refresh), [Kill()])
    assert not (out / "refreshed").exists()
    assert {p.relative_to(out).as_posix() for p in out.glob("checkpoint-*/refreshed/*")} == {"checkpoint-2/refreshed/0"}
    train(replace(config, refresh=refresh))
    places = ["refreshed", "checkpoint-3/refreshed", "checkpoint-4/refreshed"]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("refreshed")) == sorted(places)
    log = lines(out)
    for place, done in zip(places, (4, 3, 4), strict=True):
        assert sorted(p.name for p in (out / place).iterdir()) == ["0", "1"]
        for number, stage in enumerate(stages):
            last = [line for line in log[: done + 1] if line["stage"] == number][-1]
            reward = StageReward(load_reward(out / place / str(number)), stage.score_weight, stage.map_weight)
            assert reward.fingerprint == last["reward"]
            assert last["version"]
    shutil.rmtree(out / "refreshed")
    train(replace(config, refresh=refresh))
    assert sorted(p.name for p in (out / "refreshed").iterdir()) == ["0", "1"]


def test_a_model_of_two_stages_is_left_once(rich, tmp_path):
    """Under the last one that has begun."""
    with pytest.raises(KeyError, match="killed"):
        train(rich, [Kill(4)])
    out = tmp_path / "run"
    assert {p.relative_to(out).as_posix() for p in out.glob("checkpoint-*/refreshed/*")} == {"checkpoint-3/refreshed/0"}
    train(rich)
    assert [p.name for p in (out / "refreshed").iterdir()] == ["1"]
    reward = StageReward(load_reward(out / "refreshed" / "1"), 1.0, 0.0)
    assert reward.fingerprint == lines(out)[-1]["reward"]


def test_stages_that_cannot_be_refreshed_stay_as_they_are(config, tmp_path):
    """And the run says which."""
    told, name = [], "tests.rl.test_trainer:A"
    screen = SimpleNamespace(start=lambda lines, **_: told.extend(lines), log=lambda *_: None, close=lambda: None)
    stages = (StageConfig("finpercep-tiny", 2, 1e-3), StageConfig(name, 2, 1e-3))
    refresh, monitors = RefreshConfig(every=1, steps=1, batch=1, first_stage=0), MonitorConfig(judge="")
    config = replace(config, algorithm=ALGORITHMS["refl"], stages=stages, refresh=refresh, monitors=monitors)
    train(config, [screen])
    log = lines(tmp_path / "run")
    assert [line["version"] for line in log] == [0, 0, 1, 0, 0]
    assert ["refresh/photo" in line for line in log] == [False, False, True, False, False]
    assert [p.name for p in (tmp_path / "run" / "refreshed").iterdir()] == ["0"]
    assert f"not refreshed: stage 1 ({name}, no RewardModel)" in told
    for none in (replace(config, stages=stages[1:]), replace(config, refresh=replace(refresh, first_stage=1))):
        with pytest.raises(ValueError, match=rf"^refresh: expected a RewardModel to refresh, got A \({name}\); see "):
            RLTrainer(none)


def test_the_first_stage_is_not_refreshed_unless_it_is_the_only_one(config):
    """Also where the next one shares its model, which that one then refreshes."""
    stages = (StageConfig(steps=2), StageConfig(steps=2, map_weight=0.25))
    refresh, monitors = RefreshConfig(every=1, steps=1, batch=1), MonitorConfig(judge="")
    config = replace(config, algorithm=ALGORITHMS["refl"], stages=stages, refresh=refresh, monitors=monitors)

    def refreshed(config):
        trainer = RLTrainer(config)
        figures = [trainer.step() for _ in range(3)]
        seen = [line["version"] for line in figures], ["refresh/photo" in line for line in figures]
        return *seen, remarks.of_refresh(trainer)

    left = "not refreshed: stage 0 (finpercep-tiny, before refresh.first_stage)"
    assert refreshed(config) == ([0, 0, 1], [False, False, True], [left])
    assert refreshed(replace(config, refresh=replace(refresh, first_stage=0)))[:2] == ([0, 1, 2], [False, True, True])
    assert refreshed(replace(config, stages=(StageConfig(steps=4),))) == ([0, 1, 2], [False, True, True], [])


def test_the_best_generator_is_that_of_the_best_measurement(config, tmp_path):
    monitors = MonitorConfig(judge="", best="psnr")
    train(replace(config, eval_every=1, save_every=1, keep=9, monitors=monitors))
    found = {line["step"]: line["eval/psnr"] for line in lines(tmp_path / "run")}
    step = max(found, key=found.get)
    folder = tmp_path / "run" / f"checkpoint-{step}" / "generator" if step else config.generator
    best = SRTiny.from_pretrained(tmp_path / "run" / "best").fingerprint
    assert best == SRTiny.from_pretrained(folder).fingerprint
    with pytest.raises(ValueError, match=r"^monitors.best: expected one of psnr, ssim, judge, severity, got 'pnsr'$"):
        RLTrainer(replace(config, monitors=MonitorConfig(judge="", best="pnsr")))
    with pytest.raises(ValueError, match=r"^monitors.best: expected a measure of this run, got 'judge', which has"):
        train(replace(config, out=str(tmp_path / "other"), monitors=MonitorConfig(judge="", best="judge")))


def test_an_alarm_can_end_the_run(config, tmp_path, monkeypatch):
    monitors = MonitorConfig(judge="", alarm="stop")
    config = replace(config, eval_every=1, monitors=monitors)
    monkeypatch.setattr(Alarm, "note", lambda self, version, values: ["it parts"])
    with pytest.warns(UserWarning, match=r"step 1: it parts; the run ends here \(started again, it goes on to"):
        train(config)
    assert [line.get("alarms") for line in lines(tmp_path / "run")] == [None, ["it parts"]]
    assert (tmp_path / "run" / "checkpoint-1" / "state.pt").is_file()
    assert "it parts" in (tmp_path / "run" / "report.html").read_text()


def test_a_stage_that_ends_early(config, photo_set, tmp_path, monkeypatch):
    """`auto`: after the second measurement of the first stage, on photos held out of `train`."""

    def evidence(measured, patience, flat):
        return curriculum.Evidence(len(measured) == 2, f"{len(measured)} of 2", {"gain": 0.1 * len(measured)})

    monkeypatch.setattr(curriculum, "evidence", evidence)
    options = CurriculumConfig("auto")
    index = photo_set / "index.jsonl"  # five photos of train, two of which are held out
    index.write_text(index.read_text().replace('"val"', '"train"'))
    for name in ("p3", "p4"):
        (photo_set / "val" / name).rename(photo_set / "train" / name)
    train(replace(config, eval_every=1, dev_every=2, curriculum=options, monitors=MonitorConfig(judge="")))
    log = lines(tmp_path / "run")
    assert [line["stage"] for line in log] == [0, 0, 1, 1]
    said = ["stage 0 goes on: 1 of 2", "stage 0 ends: 2 of 2", "stage 1 goes on: 1 of 2", "stage 1 ends: its 2 steps"]
    assert [line["switch"] for line in log] == said
    assert [line["switch/gain"] for line in log] == pytest.approx([0.1, 0.2, 0.1, 0.2])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<td>1 to 1</td><td>2 of 2</td>" in page
    assert "<td>2 to 3</td><td>its 2 steps</td>" in page


def test_log(config, tmp_path):
    """Stage and fingerprint of the reward in every line; the rate falls in each stage; names of flow_grpo."""
    trainer = RLTrainer(replace(config, algorithm=ALGORITHMS["grpo"]))
    train(trainer.config)
    log = lines(tmp_path / "run")
    first, second = trainer.curriculum.fingerprints
    assert [line["stage"] for line in log] == [0, 0, 0, 0, 1, 1]
    assert [line["reward"] for line in log] == [first] * 4 + [second] * 2
    assert [line["lr"] for line in log[1:]] == pytest.approx([1e-3, 7.5e-4, 2.5e-4, 5e-4, 2.5e-4])
    assert {"loss", "policy_loss", "kl_loss", "approx_kl", "clipfrac", "reward_avg", "zero_std_ratio"} <= log[1].keys()
    assert [line["step"] for line in log if "eval/psnr" in line] == [0, 3, 5]
    assert sorted(p.name for p in (tmp_path / "run" / "pictures").iterdir()) == [
        "step-000000.png",
        "step-000003.png",
        "step-000005.png",
    ]


GRPO_NAMES = {
    "place": {"stage", "version", "lr", "trained_prompt_num"},
    "groups": {"reward_avg", "reward_std_mean", "zero_std_ratio", "group_size", "adv_abs_mean"},
    "loss": {"loss", "policy_loss", "kl_loss", "approx_kl", "ratio", "grad_norm"},
    "clip": {"clipfrac", "clipfrac_gt_one", "clipfrac_lt_one"},
}
TIMES = {"time/images_per_second", "time/rollout", "time/reward", "time/update"}


def test_names_of_a_step_and_of_a_measurement(config, tmp_path):
    """In the log, and in TensorBoard's events, where what is measured has no prefix and begins at step 0."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = replace(config, algorithm=ALGORITHMS["grpo"], monitors=MonitorConfig(judge=""))
    trainer = RLTrainer(config)
    with pytest.raises(KeyError, match="killed"):
        train(config, [TensorBoard(config.out), Kill(1)])
    for path in (tmp_path / "run").glob("events*"):
        path.rename(path.with_name("events.out.tfevents.0"))  # the first by name, as by time
    train(config, [TensorBoard(config.out)])  # from the beginning: nothing was saved
    before, *_, last = lines(tmp_path / "run")
    step = set().union(*GRPO_NAMES.values())
    measured = {name for name in before if name.startswith("eval/")}
    assert set(before) == {"step", "stage", "version", "reward"} | measured
    assert set(last) == {"step", "reward"} | step | measured
    assert measured >= {"eval/reward_avg", "eval/reward_avg_std", "eval/psnr", "eval/alarms"}
    assert (last["group_size"], before["eval/alarms"]) == (2.0, 0.0)
    seen = [{trainer.crops._pair(i).name for i in range(2 * line["step"])} for line in lines(tmp_path / "run")[1:]]
    assert [line["trained_prompt_num"] for line in lines(tmp_path / "run")[1:]] == [len(names) for names in seen]
    events = accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {f"train/{name}" for name in step | TIMES} | measured
    assert [point.step for point in events.Scalars("eval/psnr")] == [0, 3, 5]
    assert events.Scalars("eval/psnr")[0].value == pytest.approx(before["eval/psnr"])
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]


def test_the_first_measurement_is_shown(config):
    told = []
    screen = SimpleNamespace(start=lambda lines, **_: told.extend(lines), log=lambda *_: None, close=lambda: None)
    train(replace(config, algorithm=ALGORITHMS["refl"], eval_photos=1), [screen])
    assert told[0].startswith(f"ReFL against {config.stages[0].reward} (")
    assert told[1].startswith("step 0, held-out photos: stage 0, reward 0.")
    assert told[2] == "one held-out photo is too few for the alarm; see eval_photos"


def test_a_run_ends_with_a_climb_test(config, photo_set, tmp_path):
    """Of the generator that it leaves, by its last reward; asked for when the run is over, it is there too."""
    stages = tuple(
        replace(stage, reward="tests.rl.test_climbs:Brightness", steps=1, lr=1e-2) for stage in config.stages
    )
    config = replace(config, algorithm=ALGORITHMS["refl"], stages=stages, ema=0.5, save_every=2)
    train(replace(config, monitors=MonitorConfig(judge="")))
    assert not (tmp_path / "run" / "climb.json").exists()
    train(replace(config, monitors=MonitorConfig(judge="", climb=1)))
    found = json.loads((tmp_path / "run" / "climb.json").read_text())
    held = HeldOut(load_pairs([photo_set], "val", 4), config.side, 4, config.eval_steps)
    image = held.images(SRTiny.from_pretrained(tmp_path / "run" / "generator"), torch.device("cpu"))[0]
    assert found["summary"]["climbs"] == 1
    assert found["summary"]["start"] == pytest.approx(float(image.mean()), abs=1e-6)
    assert found["summary"]["end"] > found["summary"]["start"] + 0.03
    assert "How far the reward is climbed by pixels alone" in (tmp_path / "run" / "report.html").read_text()
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(folder)
    train(replace(config, monitors=MonitorConfig(judge="")))  # another run, which is not climbed
    assert not (tmp_path / "run" / "climb.json").exists()


@pytest.mark.parametrize(
    ("alarm", "every", "photos", "said"),
    [
        ("warn", 6, 4, "the alarm compares measurements 6 steps apart by one version of .* refreshed every 6: once it"),
        ("warn", 7, 4, None),
        ("warn", 0, 1, "one held-out photo is too few for the alarm"),
        ("warn", 0, 2, "2 held-out photos are few for the alarm"),
        ("warn", 0, 4, None),
        ("off", 6, 1, None),
    ],
)
def test_an_alarm_that_cannot_go_off_is_told_at_the_start(config, alarm, every, photos, said):
    monitors = MonitorConfig(judge="", alarm=alarm, patience=2)
    config = replace(config, monitors=monitors, refresh=RefreshConfig(every=every), eval_photos=photos)
    held_out = SimpleNamespace(batch=range(photos))
    lines = remarks.of_settings(SimpleNamespace(config=config, kept=0, held_out=held_out))
    assert len(lines) == (said is not None)
    assert all(re.match(said, line) for line in lines)


@pytest.mark.parametrize(
    ("options", "updates", "said"),
    [
        ({}, 1, [r"step 0 of the sampler, in algorithm.window, adds noise of 0.72 where the next one expects 0.06: "]),
        ({"window": (1, 2)}, 1, []),
        ({"kind": "cps"}, 1, []),
        ({"steps": 10}, 1, []),
        ({"window": (1, 2), "limit": "dppo"}, 1, ["algorithm.limit=dppo limits nothing with updates=1"]),
        ({"window": (1, 2), "limit": "guard"}, 2, []),
    ],
)
def test_what_flow_grpo_may_not_have_meant_is_told_at_the_start(config, options, updates, said):
    config = replace(config, algorithm=GRPOConfig(**options), updates=updates)
    lines = remarks.of_algorithm(SimpleNamespace(config=config, generator=SRTiny((16, 24), 1)))
    assert len(lines) == len(said)
    assert all(re.match(pattern, line) for pattern, line in zip(said, lines, strict=True))
    assert remarks.of_algorithm(SimpleNamespace(config=replace(config, algorithm=ReFLConfig()))) == []


def test_options_that_the_generator_does_not_take_are_told_at_the_start(config):
    """But for the prompt, which rewards are told; a pipeline is left to take its options."""
    told = []
    screen = SimpleNamespace(start=lambda lines, **_: told.extend(lines), log=lambda *_: None, close=lambda: None)
    options = GeneratorConfig(train="full", rank=8, guidance=3.0, prompt="a photo")
    stages = (replace(config.stages[0], steps=1),)
    config = replace(config, algorithm=ALGORITHMS["refl"], stages=stages, generator_options=options)
    train(config, [screen])
    names = "generator_options.train, generator_options.rank, generator_options.guidance"
    said = f"{names}: no effect on {config.generator}, which is no pipeline of diffusers"
    assert said in told
    for kind, given in ((SRTiny, GeneratorConfig(prompt="a photo")), (LatentGenerator, options)):
        trainer = SimpleNamespace(generator=kind.__new__(kind), config=replace(config, generator_options=given))
        assert remarks.of_options(trainer) == []


def test_another_reward_is_refused(config):
    train(replace(config, algorithm=ALGORITHMS["refl"]))
    stages = (config.stages[0], replace(config.stages[1], map_weight=0.5))
    with pytest.raises(
        ValueError, match=r"state\.pt: made with reward_fingerprints=.*stages\.1\.map_weight=0\.0 \(now 0\.5\);"
    ):
        train(replace(config, algorithm=ALGORITHMS["refl"], stages=stages))
    with pytest.raises(ValueError, match=r"made with.*kind='ReFLConfig' \(now 'NFTConfig'\)"):
        train(replace(config, algorithm=ALGORITHMS["nft"]))


def test_another_reward_is_taken_where_that_is_asked_for(config, tmp_path):
    """What the former one gave is not compared with what this one gives."""
    config = replace(config, algorithm=ALGORITHMS["refl"], monitors=MonitorConfig(judge="finpercep-small"))
    with pytest.raises(KeyError, match="killed"):
        train(config, [Kill(4)])
    here = "tests.rl.test_trainer"
    others = [replace(stage, reward=f"{here}:{name}") for stage, name in zip(config.stages, "AB", strict=True)]
    other = replace(config, stages=tuple(others), monitors=MonitorConfig(judge="finpercep-tiny"))
    with pytest.raises(ValueError, match=r"made with.* judge_fingerprint=.*; accept_reward=true goes on with other"):
        train(other)
    trainer = RLTrainer(replace(other, accept_reward=True))
    assert trainer.resume()
    assert (trainer.done, trainer.alarm.measured, trainer.curriculum.measured) == (2, [], [])
    train(replace(other, accept_reward=True))
    log = lines(tmp_path / "run")
    assert [line["step"] for line in log] == [0, 1, 2, 3, 4, 5]
    assert log[2]["reward"] != log[3]["reward"] == trainer.fingerprints[0]
    written = json.loads((tmp_path / "run" / "rl.json").read_text())
    assert [stage["reward"] for stage in written["stages"]] == [stage.reward for stage in others]
    with pytest.raises(
        ValueError, match=r"checkpoint-5: expected steps that are left for other rewards, got a run that"
    ):
        train(replace(config, accept_reward=True))
    longer = replace(other, accept_reward=True, stages=(*others, others[0]))
    with pytest.raises(ValueError, match=r"made with stages="):
        train(longer)
    with pytest.raises(ValueError, match=r"^accept_reward: expected refresh.every 0"):
        replace(other, accept_reward=True, refresh=RefreshConfig(every=2))


def test_another_judge_is_not_compared_with_the_former_one(config, tmp_path):
    """The alarm and the best generator forget what it gave, and the run's settings name the new one."""
    here = "tests.rl.test_trainer"
    monitors = MonitorConfig(judge=f"{here}:A", best="judge")
    config = replace(config, algorithm=ALGORITHMS["refl"], eval_every=1, save_every=1, monitors=monitors)
    with pytest.raises(KeyError, match="killed"):
        train(config, [Kill(4)])
    other = replace(config, monitors=replace(monitors, judge=f"{here}:B"))
    with pytest.raises(ValueError, match=r"judge_fingerprint=.*; accept_reward=true goes on with other rewards or an"):
        train(other)
    same = RLTrainer(config)
    assert same.resume()
    assert same.best.value is not None
    assert {"judge", "psnr"} <= set.intersection(*map(set, same.alarm.measured))
    trainer = RLTrainer(replace(other, accept_reward=True))
    assert trainer.resume()
    assert trainer.best.value is None
    assert [sorted(values) for values in trainer.alarm.measured] == [
        sorted(values.keys() - {"judge"}) for values in same.alarm.measured
    ]
    train(replace(other, accept_reward=True))
    assert json.loads((tmp_path / "run" / "rl.json").read_text())["monitors"]["judge"] == f"{here}:B"
    with pytest.raises(
        ValueError, match=r"checkpoint-5: expected steps that are left for other rewards, got a run that"
    ):
        train(replace(config, accept_reward=True))  # the page would name a judge that has seen nothing
    assert json.loads((tmp_path / "run" / "rl.json").read_text())["monitors"]["judge"] == f"{here}:B"


def test_what_is_climbed_cannot_be_the_best_judge(config):
    monitors = MonitorConfig(judge=config.stages[0].reward, best="judge")
    with pytest.raises(
        ValueError, match=r"^monitors\.best: expected a measure of this run, got 'judge', which has none: it"
    ):
        RLTrainer(replace(config, monitors=monitors))


def test_fewer_photos_than_asked_for_are_said(config):
    told = []
    screen = SimpleNamespace(start=lambda lines, **_: told.extend(lines), log=lambda *_: None, close=lambda: None)
    train(replace(config, algorithm=ALGORITHMS["refl"], stages=config.stages[:1], eval_photos=8), [screen])
    assert "2 photos are held out, of 8 that eval_photos asks for: there are no more" in told
    assert "2 held-out photos are few for the alarm, which compares with their spread" in told


@pytest.mark.parametrize("place", ["images", "climb_results"])
def test_no_memory_before_the_first_step_or_after_the_last_says_the_same(config, place, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(*((HeldOut, "images", full) if place == "images" else (measurement, "climb_results", full)))
    stages = tuple(replace(stage, steps=1) for stage in config.stages)
    monitors = MonitorConfig(judge="", climb=1)
    with pytest.raises(MemoryError, match=r"^memory: expected enough for a step"):
        train(replace(config, algorithm=ALGORITHMS["refl"], stages=stages, monitors=monitors))


def test_a_reward_above_the_target_of_refl_is_said(config):
    """From there on nothing is learned from it."""
    told = []
    screen = SimpleNamespace(start=lambda lines, **_: told.extend(lines), log=lambda *_: None, close=lambda: None)
    stages = (replace(config.stages[0], steps=1),)
    for target, said in ((-1.0, True), (1.0, False)):
        out = f"{config.out}{target}"
        train(replace(config, out=out, algorithm=ReFLConfig(steps=2, late=1, target=target), stages=stages), [screen])
        assert any("from algorithm.target=-1 on nothing is learned" in line for line in told) == said
        told.clear()


def test_a_run_that_goes_on_has_its_present_settings_on_the_page(config, tmp_path):
    config = replace(config, algorithm=ALGORITHMS["refl"], eval_photos=2)
    with pytest.raises(KeyError, match="killed"):
        train(config, [Kill(4)])
    train(replace(config, monitors=replace(config.monitors, alarm="off")))
    assert "The alarm was off." in (tmp_path / "run" / "report.html").read_text()


def test_a_run_whose_log_is_lost_when_it_is_over(config, tmp_path):
    """There is nothing to make a page of: the one that is there stays, and what else a run leaves is there."""
    config = replace(config, algorithm=ALGORITHMS["refl"], monitors=MonitorConfig(judge=""))
    train(config)
    run = tmp_path / "run"
    page = (run / "report.html").read_bytes()
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "generator")
    with pytest.warns(
        UserWarning, match=r"run/metrics\.jsonl: expected measurements for report\.html, got none; it is"
    ):
        train(config)
    assert (run / "report.html").read_bytes() == page
    assert (run / "generator" / "config.json").is_file()


class A:
    """A reward with gradients and a fingerprint of its own."""

    fingerprint = "a"

    def __call__(self, images):
        return RewardOutput(images.flatten(1).mean(1), None)


class B(A):
    fingerprint = "b"


class C(A):
    """Without gradients."""

    def __call__(self, images):
        return RewardOutput(images.detach().flatten(1).mean(1), None)


class D(A):
    """Scores of another shape."""

    def __call__(self, images):
        return RewardOutput(images.mean((2, 3)).mean(1, keepdim=True), None)


class Rounded(A):
    """With gradients that are 0 everywhere."""

    def __call__(self, images):
        return super().__call__((255 * images).round() / 255)


ROUNDED = Rounded()
MIXED = Mixture({"bright": (A(), 1.0), "detached": (C(), 1.0)})


def test_no_memory_says_what_to_lower(config, monkeypatch):
    trainer = RLTrainer(replace(config, algorithm=ALGORITHMS["refl"]))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(type(trainer.algorithm), "loss", full)
    with pytest.raises(
        MemoryError,
        match=r"^memory: expected enough for a step.*lower algorithm\.micro_batch, algorithm\.group_size, batch",
    ):
        train(replace(config, algorithm=ALGORITHMS["refl"]))


def test_a_reward_without_a_number_is_named_under_refl(config, monkeypatch):
    """Not the loss that comes of it; and no weight has moved."""
    monkeypatch.setattr(
        A, "__call__", lambda self, images: RewardOutput(images.flatten(1).mean(1) * float("nan"), None)
    )
    stages = (replace(config.stages[0], reward="tests.rl.test_trainer:A"),)
    trainer = RLTrainer(replace(config, algorithm=ALGORITHMS["refl"], stages=stages))
    before = trainer.generator.fingerprint
    with pytest.raises(FloatingPointError, match=r"^reward: expected finite scores, got nan for image \d+$"):
        trainer.step()
    assert trainer.generator.fingerprint == before


def test_a_state_older_than_a_setting_had_its_default(config, tmp_path):
    config = replace(config, stages=config.stages[:1], monitors=MonitorConfig(judge=""))
    RLTrainer(config).save()
    (path,) = (tmp_path / "run").glob("checkpoint-*/state.pt")
    state = torch.load(path, weights_only=True)
    del state["settings"]["max_norm"], state["settings"]["algorithm"]["micro_batch"]
    torch.save(state, path)
    assert RLTrainer(config).resume()
    with pytest.raises(ValueError, match=rf"made with max_norm={config.max_norm} \(now 99\.0\)"):
        RLTrainer(replace(config, max_norm=99.0)).resume()


def test_what_saves_memory_may_change_on_the_way(config, tmp_path):
    """As the errors that a run ends with say: less memory, more patience; and the cache may have moved."""
    options = GeneratorConfig(cache=str(tmp_path / "a"))
    config = replace(config, stages=config.stages[:1], monitors=MonitorConfig(judge=""), generator_options=options)
    RLTrainer(config).save()
    (path,) = (tmp_path / "run").glob("checkpoint-*/state.pt")
    state = torch.load(path, weights_only=True)  # as it was when these were compared
    state["settings"] |= {"max_skipped": 10, "generator_options": asdict(options)}
    torch.save(state, path)
    other = GeneratorConfig(cache=str(tmp_path / "b"), checkpointing=True, decode="tiled")
    assert RLTrainer(replace(config, generator_options=other, max_skipped=99)).resume()
    with pytest.raises(ValueError, match=r"made with generator_options\.rank=32 \(now 4\)"):
        RLTrainer(replace(config, generator_options=replace(other, rank=4))).resume()


@pytest.mark.parametrize(
    ("name", "reward", "message"),
    [
        (
            "refl",
            "tests.rl.test_trainer:C",
            "stages: expected rewards with gradients .*, got .*:C without",
        ),
        ("refl", "tests.rl.test_trainer:ROUNDED", "got .*:ROUNDED without"),
        ("refl", "tests.rl.test_trainer:MIXED", "got detached of .*:MIXED without; use grpo"),
        ("grpo", "tests.rl.test_trainer:A", "map_weight: expected a reward with a map, got A without"),
        ("refl", "tests.rl.test_trainer:D", r"expected scores \(1,\) for 1 images, got \(1, 1\) from D"),
    ],
)
def test_every_stage_is_asked_before_the_first_step(config, name, reward, message):
    """And not when its stage begins, after thousands of steps."""
    algorithm = replace(ALGORITHMS[name], map_weight=0.5) if name == "grpo" else ALGORITHMS[name]
    stages = (config.stages[0], replace(config.stages[1], reward=reward))
    with pytest.raises(ValueError, match=message):
        RLTrainer(replace(config, algorithm=algorithm, stages=stages))


def test_rewards_are_told_the_prompt(config, monkeypatch):
    monkeypatch.setattr(A, "takes", ("prompts", "metadata"), raising=False)
    told = []

    def call(self, images, prompts, metadata):
        told.append((prompts, metadata))
        return RewardOutput(images.flatten(1).mean(1), None)

    monkeypatch.setattr(A, "__call__", call)
    stages = (replace(config.stages[0], reward="tests.rl.test_trainer:A"),)
    options = GeneratorConfig(prompt="a photo")
    trainer = RLTrainer(replace(config, algorithm=ALGORITHMS["grpo"], stages=stages, generator_options=options))
    trainer.step()
    trainer.evaluate()
    assert {tuple(prompts) for prompts, _ in told} >= {("a photo",) * 2}
    assert all(set(prompts) == {"a photo"} and metadata == [{}] * len(prompts) for prompts, metadata in told)


def test_other_data_are_refused_and_moved_ones_taken(config, photo_set, tmp_path):
    """By the names and sizes of files."""
    config = replace(config, stages=config.stages[:1], eval_photos=1, monitors=MonitorConfig(judge=""))
    RLTrainer(config).save()
    moved = replace(config, data=(str(photo_set.rename(tmp_path / "moved")),))
    assert RLTrainer(moved).resume()
    photo = tmp_path / "moved" / "train" / "p1" / "gt.png"
    photo.write_bytes((tmp_path / "moved" / "train" / "p0" / "gt.png").read_bytes())
    with pytest.raises(ValueError, match=r"checkpoint-0/state\.pt: made with data_fingerprint='.*' \(now '.*'\)"):
        RLTrainer(moved).resume()
    with pytest.raises(ValueError, match="expected at least 2 of them, got 1"):
        RLTrainer(replace(moved, curriculum=CurriculumConfig("auto"), dev_every=3))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_weights(config, monkeypatch):
    trainer = RLTrainer(replace(config, algorithm=ALGORITHMS["refl"]))
    before = trainer.generator.fingerprint
    loss = trainer.algorithm.loss
    monkeypatch.setattr(trainer.algorithm, "loss", lambda part: {k: v * float("nan") for k, v in loss(part).items()})
    with pytest.raises(FloatingPointError, match="loss at step 0 is nan"):
        trainer.step()
    assert trainer.generator.fingerprint == before


BROKEN = "tests.rl.test_trainer:Broken"


class Constant:
    """A reward that is saturated."""

    fingerprint = "constant-1"

    def __call__(self, images):
        return RewardOutput(torch.full((len(images),), 0.5), None)


class Broken:
    """A judge that has no answer to the second photo."""

    fingerprint = "broken-1"

    def __call__(self, images):
        return RewardOutput(torch.tensor([0.5, float("nan")]), None)


@pytest.mark.parametrize("place", [{"judge": BROKEN}, {"judge": "", "metrics": (BROKEN,)}])
def test_a_judge_or_a_measure_without_an_answer_ends_the_run(config, tmp_path, place):
    name = "judge" if place["judge"] else BROKEN
    hint = "; the run can go on without it in monitors.metrics" if "metrics" in place else ""
    message = f"^{name}: expected a finite figure .* nan of number 1 at step 0{hint}$"
    with pytest.raises(FloatingPointError, match=message):
        train(replace(config, monitors=MonitorConfig(**place, best="psnr")))
    assert not (tmp_path / "run" / "best").exists()


class Late:
    """A measure that fails after the first measurement."""

    fingerprint = "late-1"

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += 1
        return RewardOutput(torch.full((len(images),), 0.5 if self.seen == 1 else float("nan")), None)


def test_a_run_goes_on_without_a_measure_that_failed(config, tmp_path):
    """What was trained is not lost to a figure that is only looked at; the weights are those of a run without it."""
    plain = MonitorConfig(judge="")
    config = replace(config, save_every=1, eval_every=2, monitors=plain)
    whole = train(replace(config, out=str(tmp_path / "whole")))
    with pytest.raises(
        FloatingPointError, match=r"^tests.rl.test_trainer:Late: .* at step 2; the run can go on without"
    ):
        train(replace(config, monitors=replace(plain, metrics=("tests.rl.test_trainer:Late",))))
    resumed = train(config)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    log = lines(tmp_path / "run")
    name = "eval/tests.rl.test_trainer:Late"
    assert log[0][name] == 0.5
    assert name not in log[-1]
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("name", ["dpo", "grpo", "nft"])
def test_steps_that_teach_nothing_are_skipped_and_end_the_run_in_the_end(config, tmp_path, name):
    stages = (StageConfig("tests.rl.test_trainer:Constant", steps=5),)
    config = replace(config, algorithm=ALGORITHMS[name], stages=stages, max_skipped=3, monitors=MonitorConfig(judge=""))
    with (
        pytest.warns(UserWarning, match="step 1 is skipped: reward: all 2 .* group_size, or use a reward"),
        pytest.raises(ValueError, match=r"not saturated on these images; 3 steps in a row taught nothing"),
    ):
        train(replace(config, save_every=1))
    log = lines(tmp_path / "run")
    assert [line.get("skipped") for line in log] == [None, 1, 2]
    assert not any("loss" in line for line in log)
    with pytest.raises(ValueError, match="3 steps in a row"):  # resumed after the second
        train(replace(config, save_every=1))


def test_labelled_results_are_learned_from(config, photo_set, labelled, tmp_path):
    """Pairs of `pairs.jsonl` alone are trained on; other sets beside them are measured on."""
    algorithm = DPOConfig(pairs="given", micro_batch=1, beta=200.0)
    data = (str(labelled), str(photo_set))
    stages = (StageConfig(steps=8, lr=1e-3),)
    config = replace(
        config, data=data, algorithm=algorithm, stages=stages, eval_every=8, monitors=MonitorConfig(judge="")
    )
    trainer = RLTrainer(config)
    assert len(trainer.crops.pairs) == 3
    train(config)
    log = lines(tmp_path / "run")
    assert log[1]["loss"] == pytest.approx(0.6931, abs=1e-3)
    trainer.step()
    assert trainer.config.results == 2  # nothing is sampled: a group's size does not count
    assert log[-1]["loss"] < 0.68  # of chosen ones, which are bright, and rejected ones, which are dark
    assert "reward_avg" not in log[1]
    assert "eval/reward_avg" in log[-1]


OPTIONS = {
    "refl": ReFLConfig(steps=3, late=1, last=3, map_weight=0.5),
    "grpo": GRPOConfig(
        steps=4,
        group_size=2,
        sliding=1,
        slide_every=1,
        std_weight=True,
        map_weight=0.5,
        norm_weight=0.1,
        photo_weight=0.1,
    ),
    "guard": GRPOConfig(steps=3, group_size=2, limit="guard"),
    "dppo": GRPOConfig(steps=3, group_size=2, limit="dppo"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_algorithms_in_the_loop(config, tmp_path, name):
    """With the embedded reward, its map, two updates for each collection, and a blend of two stages."""
    curriculum = CurriculumConfig("blend", blend_steps=2)
    stages = (StageConfig(steps=1, lr=1e-4, map_weight=0.0), StageConfig(steps=2, lr=1e-4))
    algorithm = replace(OPTIONS[name], micro_batch=1)
    config = replace(config, algorithm=algorithm, stages=stages, curriculum=curriculum, updates=2, eval_every=3)
    train(replace(config, monitors=MonitorConfig(judge="")))
    log = lines(tmp_path / "run")[1:]
    assert len(log) == 3
    assert [line.get("reward_before") for line in log] == [None, log[0]["reward"], None]
    assert [line.get("version_before") for line in log] == [None, 0, None]
    for line in log:
        assert all(isinstance(value, (str, list)) or value - value == 0 for value in line.values())
        assert line["grad_norm"] > 0


@pytest.mark.parametrize(("optimizer", "steps"), [("keep", 3), ("reset", 1), ("rewarm", 3)])
def test_moments_at_a_switch(config, optimizer, steps):
    """After the first step of the second stage: of it alone with "reset", and of three steps else."""
    stages = (StageConfig(steps=2, lr=1e-3), StageConfig(steps=2, lr=1e-3))
    trainer = RLTrainer(replace(config, stages=stages, curriculum=CurriculumConfig(optimizer=optimizer)))
    for _ in range(3):
        trainer.step()
    for parameter in trainer.generator.trainable_parameters():
        state = trainer.optimizer.state[parameter]
        assert int(state["step"]) == steps
        first = torch.allclose(state["exp_avg"], 0.1 * parameter.grad, rtol=1e-4, atol=0)
        assert first == (optimizer == "reset")
    assert trainer.optimizer.param_groups[0]["weight_decay"] == trainer.config.weight_decay


def test_photos_beside_low_resolution_images_alone(config, tmp_path):
    """Photos of some serve the pre-training term and the refresh, and a resumed run is the one that never stopped."""
    for number in range(3):
        save_image(as_picture(torch.rand(3, 16, 16)), tmp_path / "alone" / f"{number}.png")
    data = (*config.data, f"lr:{tmp_path / 'alone'}")
    algorithm, refresh = ALGORITHMS["refl"], RefreshConfig(every=2, steps=1, batch=2)
    config = replace(config, data=data, algorithm=algorithm, refresh=refresh, monitors=MonitorConfig(judge=""))
    trainer = RLTrainer(config)
    masks = [trainer.crops.batch(step, 2).has_photo for step in range(5)]
    assert 0 < torch.stack(masks).sum() < 10
    assert all(pair.has_photo for pair in trainer.refresh.crops.pairs)
    train(config)
    broken = replace(config, out=str(tmp_path / "broken"))
    with pytest.raises(KeyError, match="killed"):
        train(broken, [Kill()])
    train(broken)
    log = lines(tmp_path / "run")
    assert log == lines(tmp_path / "broken")
    assert [line["pretrain_loss"] > 0 for line in log[1:]] == [bool(mask.any()) for mask in masks]


@pytest.mark.parametrize(("name", "option"), [("refl", {"pretrain": True}), ("grpo", {"photo_weight": 0.1})])
def test_a_term_on_photos_without_photos_is_refused_before_anything_is_written(
    config, photo_set, tmp_path, name, option
):
    """Held-out ones are none of them."""
    index = photo_set / "index.jsonl"
    index.write_text(index.read_text().replace('"train"', '"val"'))
    (photo_set / "train").rename(tmp_path / "alone")
    for number in range(3):
        (tmp_path / "alone" / f"p{number}" / "gt.png").unlink()
        (photo_set / "val" / f"p{number}").symlink_to(photo_set / "val" / "p3")
    config = replace(config, data=(str(photo_set), f"lr:{tmp_path / 'alone'}"), monitors=MonitorConfig(judge=""))
    algorithm = replace(ALGORITHMS[name], **option)
    with pytest.raises(
        ValueError, match=rf"^algorithm\.{next(iter(option))}: expected photos beside .*, got none; or set it to"
    ):
        train(replace(config, algorithm=algorithm))
    assert not (tmp_path / "run").exists()
    RLTrainer(replace(config, algorithm=replace(algorithm, **dict.fromkeys(option, False)))).step()


def test_nothing_draws_from_the_generators_of_python_and_numpy(rich):
    """They are as the seed has left them."""
    train(rich)
    after = state_of_others()
    seed_others(rich.seed)
    assert after == state_of_others()


class DrawsFromNumpy(Red):
    """A reward of one's own with noise from NumPy's generator and Python's."""

    def __call__(self, images):
        score = super().__call__(images).score
        return RewardOutput(score + torch.from_numpy(np.random.rand(len(images))).float() + random.random(), None)  # noqa: NPY002


def test_rewards_that_draw_from_numpy_resume_exactly(config, tmp_path, monkeypatch):
    monkeypatch.setattr("finpercep.rl.build.load_reward", lambda *given, **options: DrawsFromNumpy())
    config = replace(config, algorithm=ALGORITHMS["refl"], save_every=1, monitors=MonitorConfig(judge=""))
    train(config)
    broken = replace(config, out=str(tmp_path / "broken"))
    with pytest.raises(KeyError, match="killed"):
        train(broken, [Kill()])
    np.random.rand(7), random.random()  # noqa: NPY002
    train(broken)
    assert lines(tmp_path / "run") == lines(tmp_path / "broken")


def test_more_updates_than_micro_batches(config):
    algorithm = GRPOConfig(steps=3, group_size=2, micro_batch=4)
    RLTrainer(replace(config, algorithm=algorithm, updates=2))  # 2 images x 2 results x 2 steps
    with pytest.raises(ValueError, match="at most 2, one for each micro-batch of a step's 8 rows, got 3"):
        RLTrainer(replace(config, algorithm=algorithm, updates=3))


def test_refl_raises_its_reward(config):
    """Ten updates on the same images, without the pre-training term, against the embedded reward model."""
    algorithm = replace(ALGORITHMS["refl"], pretrain=False, weighting="identity")
    trainer = RLTrainer(replace(config, algorithm=algorithm, stages=(StageConfig(steps=40, lr=2e-3),)))
    batch = trainer.crops.batch(0, 2)
    trainer.crops.batch = lambda number, size: batch
    rewards = [trainer.step()["reward_avg"] for _ in range(10)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.01


def test_options(config):
    with pytest.raises(ValueError, match="updates: expected at least 1, got 0"):
        replace(config, updates=0)
