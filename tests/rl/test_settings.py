"""Settings: YAML and back, assignments by type, and mistakes that name what was meant."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml

from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.grpo import GRPOConfig
from finpercep.rl.refl import ReFLConfig
from finpercep.rl.settings import from_plain, resolve, to_plain
from finpercep.rl.settings_yaml import as_yaml


@pytest.fixture
def config():
    stages = (StageConfig("a", 3, 1e-4), StageConfig("b", 4, map_weight=0.25))
    return RLConfig(("x", "y"), "o", algorithm=GRPOConfig(steps=4, window=(1, 3)), stages=stages)


def test_yaml_and_back(config, tmp_path):
    (tmp_path / "run.yaml").write_text(as_yaml(config))
    assert resolve(tmp_path / "run.yaml") == config
    assert from_plain(to_plain(config)) == config
    assert yaml.safe_load(as_yaml(config))["algorithm"] == {"name": "grpo"} | {
        name: [1, 3] if name == "window" else value for name, value in vars(config.algorithm).items()
    }


def test_nothing_given_is_the_defaults():
    assert resolve() == RLConfig()


def test_file_then_given_then_assignments(tmp_path):
    """Each replaces what came before, and leaves the rest."""
    (tmp_path / "run.yaml").write_text("batch: 2\nside: 64\nalgorithm: {steps: 5}\nstages: [{lr: 1e-3}, {steps: 7}]\n")
    found = resolve(tmp_path / "run.yaml", ["side=48", "stages.1.lr=2e-3", "algorithm.late=4"], {"data": ["d"]})
    stages = (StageConfig(lr=1e-3), StageConfig(steps=7, lr=2e-3))
    expected = RLConfig(("d",), batch=2, side=48, algorithm=ReFLConfig(steps=5, late=4), stages=stages)
    assert found == expected
    assert isinstance(found.stages[1].lr, float)


def test_the_algorithm_is_chosen_before_its_options():
    assert resolve(assignments=["algorithm.group_size=4", "algorithm.name=grpo"]).algorithm == GRPOConfig(group_size=4)
    assert resolve(given={"algorithm": {"name": "grpo"}}).algorithm == GRPOConfig()
    window = resolve(assignments=["algorithm.window=[0, 1]"], given={"algorithm": {"name": "grpo"}})
    assert window.algorithm == GRPOConfig(window=(0, 1))


def test_the_short_form_of_an_algorithm(tmp_path):
    (tmp_path / "run.yaml").write_text("algorithm: grpo\n")
    assert resolve(tmp_path / "run.yaml") == replace(RLConfig(), algorithm=GRPOConfig())
    assert resolve(assignments=["algorithm.group_size=4", "algorithm=grpo"]).algorithm == GRPOConfig(group_size=4)


def test_a_file_of_another_algorithm_is_named(tmp_path):
    (tmp_path / "run.yaml").write_text("algorithm:\n  name: nft\n  mix: 0.3\n")
    with pytest.raises(ValueError, match=r"run\.yaml: expected settings of grpo, got those of nft"):
        resolve(tmp_path / "run.yaml", given={"algorithm": {"name": "grpo"}})
    (tmp_path / "run.yaml").write_text("algorithm: nft\n")
    assert resolve(tmp_path / "run.yaml", given={"algorithm": {"name": "grpo"}}).algorithm == GRPOConfig()


def test_text_that_looks_like_a_number_stays():
    found = resolve(assignments=["out=0123", "generator_options.prompt=12:30", "generator=1.50", "seed=010"])
    assert (found.out, found.generator_options.prompt, found.generator, found.seed) == ("0123", "12:30", "1.50", 8)
    assert resolve(assignments=['out="0123"']).out == "0123"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("bach=3", r"bach: no such setting; did you mean batch\?"),
        ("algorithm.stepz=3", r"algorithm\.stepz: no such setting of refl; did you mean steps\?"),
        ("stages.0.rl=3", r"stages\.0\.rl: no such setting; did you mean lr\?"),
        ("stages.1.lr=3", r"stages\.1: expected a place from 0 to 0, got '1'"),
        ("batch=many", r"batch: expected a whole number, got 'many'"),
        ("batch=2.5", r"batch: expected a whole number, got 2.5"),
        ("stages.0.lr=fast", r"stages\.0\.lr: expected a number, got 'fast'"),
        ("algorithm.pretrain=3", r"algorithm\.pretrain: expected true or false, got 3"),
        ("algorithm.late=9", r"algorithm\.late: expected 1 to 3"),
        ("algorithm.name=ppo", r"algorithm\.name: expected one of refl, dpo, grpo, nft, got 'ppo'"),
        ("batch.x=1", r"batch\.x: batch is a value"),
        ("batch", r"set: expected NAME=VALUE, got 'batch'"),
        ("data=x", r"data: expected a list, got 'x'"),
        ("stages=[{lr: 1, rewards: a}]", r"stages\.0\.rewards: no such setting; did you mean reward\?"),
        ("batch=0", r"batch: expected at least 1, got 0"),
        ("batch=.inf", r"batch: expected a whole number, got inf"),
        ("batch=.nan", r"batch: expected a whole number, got nan"),
        ("max_norm=1" + 400 * "0", r"max_norm: expected a number, got 1000"),
        ("algorithm.name=[refl]", r"algorithm\.name: expected one of refl, dpo, grpo, nft, got \['refl'\]"),
        ("side=8", r"side: expected at least 11, the window of SSIM, got 8"),
        ("degraded=1.5", r"degraded: expected 0 to 1, got 1.5"),
        ("max_norm=0", r"max_norm: expected more than 0, got 0"),
        ("max_norm=.nan", r"max_norm: expected more than 0, got nan"),
        ("weight_decay=-1", r"weight_decay: expected 0 or more, got -1"),
        ("stages=[]", r"stages: expected at least one, got none"),
        ("stages.0.lr=-1e-5", r"stages\.0\.lr: expected 0 or more, got -1e-05"),
        ("stages.0.steps=0", r"stages\.0\.steps: expected at least 1, got 0"),
        ("stages.0.map_weight=-1", r"stages\.0\.map_weight: expected 0 or more, got -1"),
        (
            "stages=[{}, {score_weight: 0, map_weight: 0}]",
            r"^stages\.1\.score_weight, map_weight: expected one of them above 0, got 0 and 0$",
        ),
        ("seed=" + 20 * "9", r"^seed: expected -2\*\*63 to 2\*\*64 - 1, which torch takes, got 9{20}$"),
        (f"seed={-(2**63) - 1}", r"^seed: expected -2\*\*63 to 2"),
        ("refresh.lr=0", r"refresh\.lr: expected more than 0, got 0"),
        ("refresh.lr=.inf", r"refresh\.lr: expected a number, got inf"),
        ("algorithm.weight=-1", r"algorithm\.weight: expected 0 or more, got -1"),
        ("algorithm.target=.nan", r"algorithm\.target: expected a number, got nan"),
        ("generator_options.guidance=.nan", r"generator_options\.guidance: expected a number, got nan"),
        ("generator_options.control_scale=.inf", r"generator_options\.control_scale: expected a number, got inf"),
        ("generator_options.guidance=0.5", r"generator_options\.guidance: expected at least 1, got 0.5"),
        ("degradation.jpeg_range=[95, 30]", r"degradation\.jpeg_range: expected 0 <= low <= high, got \(95.0, 30.0\)"),
        ("degradation.jpeg_range=95", r"degradation\.jpeg_range: expected a list, got 95"),
        ("degradation.jpg_range=[30, 95]", r"degradation\.jpg_range: no such setting; did you mean jpeg_range\?"),
        ("compile=off", r"compile: expected true or false, got 'off'"),
    ],
)
def test_mistakes(assignment, message):
    with pytest.raises(ValueError, match=message):
        resolve(assignments=[assignment])


def test_folders_are_several():
    with pytest.raises(ValueError, match=r"data: expected several folders, as in \('photos:x',\), got a text"):
        RLConfig(data="photos:x")


def test_files_that_are_none(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"run\.yaml: expected names and values, got list"):
        resolve(file)
    file.write_text("a: [")
    with pytest.raises(ValueError, match=r"run\.yaml: expected YAML, got"):
        resolve(file)
    for text, found in (("", "None"), ("3", "3"), ("[grpo]", r"\['grpo'\]")):
        file.write_text(f"algorithm: {text}")
        with pytest.raises(ValueError, match=rf"^algorithm: expected names and values, got {found}$"):
            resolve(file)
    with pytest.raises(FileNotFoundError):
        resolve(tmp_path / "none.yaml")


def test_a_name_that_is_given_twice(tmp_path):
    """Which of the two was meant nobody knows; in a list, each part has its own."""
    file = tmp_path / "run.yaml"
    for text, name, line in (("batch: 2\nside: 48\nbatch: 3\n", "batch", 3), ("stages:\n- {lr: 1, lr: 2}\n", "lr", 2)):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"run\.yaml: expected YAML, got {name} a second time, in line {line}$"):
            resolve(file)
    with pytest.raises(
        ValueError, match=r"^stages: expected a value in YAML, got '\[{lr: 1, lr: 2}\]': lr a second time"
    ):
        resolve(None, ["stages=[{lr: 1, lr: 2}]"])
    with pytest.raises(ValueError, match=r"^batch: expected a value in YAML, got '\['$"):
        resolve(None, ["batch=["])
    file.write_text("stages: [&a {steps: 5, lr: 1}, {<<: *a, lr: 2}, &b {<<: *a, steps: 6}, {<<: *b, steps: 7}]\n")
    assert [(stage.steps, stage.lr) for stage in resolve(file).stages] == [(5, 1.0), (5, 2.0), (6, 1.0), (7, 1.0)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algorithm.name=refl", "algorithm.micro_batch=0"], "micro_batch: expected at least 1, got 0"),
        (["algorithm.name=dpo", "algorithm.steps=0"], "steps: expected at least 1, got 0"),
        (["algorithm.name=dpo", "algorithm.beta=0"], "beta: expected more than 0, got 0"),
        (["algorithm.name=dpo", "algorithm.beta=.inf"], "beta: expected a number, got inf"),
        (["algorithm.name=nft", "algorithm.reference_weight=-1"], "reference_weight: expected 0 or more, got -1"),
        (["algorithm.name=grpo", "algorithm.noise_level=.inf"], "noise_level: expected a number, got inf"),
        (["algorithm.name=grpo", "algorithm.clip=0"], "clip: expected more than 0, got 0"),
        (["algorithm.name=grpo", "algorithm.beta=-1"], "beta: expected 0 or more, got -1"),
        (["algorithm.name=grpo", "algorithm.kind=foo"], "kind: expected one of flow, cps, dance, got 'foo'"),
        (
            ["algorithm.name=grpo", "algorithm.noise_level=2", "algorithm.kind=cps"],
            "noise_level: expected at most 1 for cps, got 2",
        ),
        (["algorithm.name=nft", "algorithm.advantage_clip=0"], "advantage_clip: expected more than 0, got 0"),
        (["algorithm.name=grpo", "algorithm.noise_level=0"], "noise_level: expected more than 0, got 0"),
        (
            ["curriculum.switch=auto", "dev_every=2", "refresh.every=150"],
            "refresh.every: expected more than the steps over which auto compares one version of the reward, 150",
        ),
    ],
)
def test_options_that_would_do_nothing(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(None, words)


def test_off_is_a_word(tmp_path):
    """YAML 1.1 reads it as false; as text it is a value of the alarm."""
    assert resolve(None, ["monitors.alarm=off"]).monitors.alarm == "off"
    file = tmp_path / "run.yaml"
    file.write_text("monitors: {alarm: off}\ngenerator_options: {prompt: no}\ncompile: true\n")
    found = resolve(file)
    assert (found.monitors.alarm, found.generator_options.prompt, found.compile) == ("off", "no", True)


def test_nothing_is_an_empty_text(tmp_path):
    """`monitors.judge=` on a command line, and `judge:` in a file."""
    assert resolve(None, ["monitors.judge="]).monitors.judge == ""
    file = tmp_path / "run.yaml"
    file.write_text("monitors: {judge: }\n")
    assert resolve(file).monitors.judge == ""
    with pytest.raises(ValueError, match=r"batch: expected a whole number, got None"):
        resolve(None, ["batch="])
