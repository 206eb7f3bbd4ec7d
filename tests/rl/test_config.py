"""What a run is built of: rewards of stages, the judge, and what must not change when it is resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from finpercep import ops
from finpercep.io.pictures import as_picture, save_image
from finpercep.models import RewardOutput
from finpercep.rewards import Mixture, StageReward
from finpercep.rl import config as config_module
from finpercep.rl.config import RLConfig, StageConfig, build_curriculum, build_judge, check_held, check_resumable
from finpercep.rl.curriculum import CurriculumConfig
from finpercep.rl.generators import GeneratorConfig
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.pairs_fingerprint import pairs_fingerprint
from finpercep.rl.photos import load_pairs
from finpercep.rl.refresh import RefreshConfig
from finpercep.rl.scores import group_advantages, group_scores
from finpercep.runs.state import STATE
from tests.rl.toy import Green, Red, batch


class Faint(Red):
    """A hundredth of how blue: what is added to it plainly drowns it."""

    fingerprint = "faint"

    def __call__(self, images):
        return RewardOutput(0.01 * images[:, 2].flatten(1).mean(1), None)


def test_a_mixture_is_normalized_by_parts():
    """Each part's R_k in its groups, then added; in a blend, too."""
    mixture = Mixture({"green": (Green(), 1.0), "faint": (Faint(), 2.0)})
    stages = (StageConfig("red", 2), StageConfig("mixture", 9, score_weight=0.7, map_weight=0.3))
    options = CurriculumConfig("blend", blend_steps=4)
    curriculum = build_curriculum(RLConfig(stages=stages, curriculum=options), {"red": Red(), "mixture": mixture})
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    given = batch(1).repeat(4)
    reward = curriculum.at(8).reward
    scores = group_scores(reward, images, given)
    assert sorted(scores) == ["avg", "faint", "green"]
    found, _ = group_advantages(reward, scores, given.ids, 9.0)
    ids, rounded = torch.zeros(4, dtype=torch.long), (images * 255).round() / 255
    green = StageReward(Green(), 0.7, 0.3)(rounded).score
    parts = [ops.group_advantage(values, group_ids=ids)[0] for values in (green, Faint()(rounded).score)]
    torch.testing.assert_close(found, parts[0] + 2 * parts[1])
    blended = curriculum.at(2).reward
    assert blended.weights == {"before": 0.75, "stage_green": 0.25, "stage_faint": 0.5}


def test_a_stage_has_the_maximum_that_it_names():
    soft = StageConfig("green", 2, maximum="soft", temperature=0.3)
    worst = StageConfig("green", 2, fraction=0.5)
    curriculum = build_curriculum(RLConfig(stages=(soft, worst)), {"green": Green()})
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = (StageReward(Green(), maximum="soft", temperature=0.3), StageReward(Green(), fraction=0.5))
    for step, reward in zip((0, 2), expected, strict=True):
        assert torch.equal(curriculum.at(step).reward(images).score, reward(images).score)
    with pytest.raises(ValueError, match="maximum: expected one of worst, max, soft, got 'mean'"):
        build_curriculum(RLConfig(stages=(StageConfig("green", 2, maximum="mean"),)), {"green": Green()})


def test_the_judge_is_not_climbed_under_another_name(monkeypatch):
    monkeypatch.setattr(config_module, "load_reward", lambda name, device: Faint())
    config = RLConfig(monitors=MonitorConfig(judge="copy"))
    around = StageReward(Mixture({"red": (Red(), 1.0), "faint": (Faint(), 1.0)}))
    for climbed in (Faint(), around):
        assert build_judge(config, {"climbed": climbed}) is None
    assert build_judge(config, {"climbed": Red()}).reward.fingerprint == "faint"


def test_data_are_known_by_their_files_wherever_they_lie(photo_set, labelled, tmp_path):
    roots = [photo_set, labelled, f"photos:{photo_set / 'train'}", f"lr:{labelled}"]
    before = pairs_fingerprint(load_pairs(roots, "train", 4))
    moved = tmp_path / "elsewhere"
    for folder in (photo_set, labelled):
        shutil.move(folder, moved / folder.name)
    photos, labels = moved / photo_set.name, moved / labelled.name
    roots = [photos, labels, f"photos:{photos / 'train'}", f"lr:{labels}"]
    assert pairs_fingerprint(load_pairs(roots, "train", 4)) == before
    save_image(as_picture(torch.rand(3, 64, 64)), photos / "train" / "p1" / "gt.png")
    assert pairs_fingerprint(load_pairs(roots, "train", 4)) != before
    row = json.loads((labels / "pairs.jsonl").read_text().splitlines()[0])
    changed = pairs_fingerprint(load_pairs([labels], "train", 4))
    save_image(as_picture(torch.rand(3, 64, 64)), labels / row["rejected"])
    assert pairs_fingerprint(load_pairs([labels], "train", 4)) != changed


def test_what_must_not_change(tmp_path):
    """Data by their fingerprint; in states that have none, by the names of their folders."""
    config = RLConfig(("a",), str(tmp_path))
    now = config_module.comparable(config) | {"data_fingerprint": "new"}
    check_resumable(
        now,
        config_module.comparable(replace(config, data=("moved",))) | {"data_fingerprint": "new"},
        replace(config, data=("moved",)),
        tmp_path,
    )
    with pytest.raises(ValueError, match=rf"{STATE}: made with data_fingerprint='old' \(now 'new'\)"):
        check_resumable(now | {"data_fingerprint": "old"}, now, config, tmp_path)
    older = {name: value for name, value in now.items() if name != "data_fingerprint"} | {"data": ("a",)}
    check_resumable(older, now, config, tmp_path)
    with pytest.raises(ValueError, match=r"made with data=\('a',\) \(now \('b',\)\)"):
        check_resumable(older, now, replace(config, data=("b",)), tmp_path)


def test_settings_younger_than_a_state_had_their_defaults(tmp_path):
    """Wherever they stand; a judge that a state does not name was the present one."""
    config = RLConfig(
        ("a",), str(tmp_path), stages=(StageConfig("finpercep-tiny", 3), StageConfig("finpercep-tiny/2", 3))
    )
    now = config_module.comparable(config) | {"data_fingerprint": "d", "judge_fingerprint": "j"}
    older = json.loads(json.dumps(now))
    del older["judge_fingerprint"], older["monitors"]["best"], older["refresh"]["synthetic"]
    del older["algorithm"]["map_weight"], older["stages"][1]["map_weight"], older["ema"]
    check_resumable(_tuples(older), now, config, tmp_path)
    with pytest.raises(ValueError, match=r"judge_fingerprint='k' \(now 'j'\)"):
        check_resumable(now | {"judge_fingerprint": "k"}, now, config, tmp_path)
    changed = now | {"stages": ({**now["stages"][0], "lr": 1.0}, now["stages"][1])}
    with pytest.raises(ValueError, match=r"made with stages\.0\.lr=1\.0"):
        check_resumable(changed, now, config, tmp_path)


def test_a_side_that_nothing_depends_on_is_not_compared(tmp_path):
    """States had 512 before it followed the run's; the generator's fingerprint says whether it matters."""
    config = RLConfig()
    now = config_module.comparable(config) | {"data_fingerprint": "d", "generator_fingerprint": "g"}
    older = now | {"generator_options": {**now["generator_options"], "shift_side": 512}}
    check_resumable(older, now, config, tmp_path)
    with pytest.raises(ValueError, match=r"generator_options\.shift_side=512 \(now None\)"):
        check_resumable(older | {"generator_fingerprint": "h"}, now, config, tmp_path)


def test_older_states_refreshed_every_stage(tmp_path):
    stages, refresh = (StageConfig(steps=3), StageConfig(steps=4)), RefreshConfig(every=2)
    for chosen, same in (
        (RLConfig(refresh=refresh, stages=stages), False),
        (RLConfig(refresh=replace(refresh, first_stage=0), stages=stages), True),
        (RLConfig(refresh=refresh, stages=stages[:1]), True),
        (RLConfig(stages=stages), True),
    ):
        now = config_module.comparable(chosen) | {"data_fingerprint": "d"}
        older = json.loads(json.dumps(now))
        del older["refresh"]["first_stage"]
        if same:
            check_resumable(_tuples(older), now, chosen, tmp_path)
            continue
        with pytest.raises(ValueError, match=r"made with refresh\.first_stage=0 \(now 1\)"):
            check_resumable(_tuples(older), now, chosen, tmp_path)


def test_the_first_stage_that_is_refreshed_is_one_of_them():
    stages = (StageConfig(), StageConfig())
    RLConfig(stages=stages[:1], refresh=RefreshConfig(every=2, first_stage=3))
    RLConfig(stages=stages, refresh=RefreshConfig(first_stage=3))
    with pytest.raises(ValueError, match=r"^refresh\.first_stage: expected at most 1, the last stage, got 2$"):
        RLConfig(stages=stages, refresh=RefreshConfig(every=2, first_stage=2))
    with pytest.raises(ValueError, match=r"^first_stage: expected 0 or more, got -1$"):
        RefreshConfig(first_stage=-1)


def _tuples(value):
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def test_auto_needs_two_held_out_photos():
    config = RLConfig(curriculum=CurriculumConfig("auto"), dev_every=2)
    check_held(config, 2)
    check_held(RLConfig(), 1)
    with pytest.raises(ValueError, match=r"^curriculum.switch: auto .* expected at least 2 of them, got 1; see eval_"):
        check_held(config, 1)


def test_half_precision_that_would_lose_gradients():
    with pytest.raises(ValueError, match=r"generator_options\.dtype: expected float32 or bfloat16 .*, got float16"):
        RLConfig(generator_options=GeneratorConfig(dtype="float16"))
    assert RLConfig(generator_options=GeneratorConfig(dtype="bfloat16")).generator_options.dtype == "bfloat16"
