"""What must not change when a run is resumed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.refresh import RefreshConfig
from finpercep.rl.resumable import check_resumable, comparable
from finpercep.runs.state import STATE


def _tuples(value):
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def test_what_must_not_change(tmp_path):
    """Data by their fingerprint; in states that have none, by the names of their folders."""
    config = RLConfig(("a",), str(tmp_path))
    now = comparable(config) | {"data_fingerprint": "new"}
    check_resumable(
        now,
        comparable(replace(config, data=("moved",))) | {"data_fingerprint": "new"},
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
    now = comparable(config) | {"data_fingerprint": "d", "judge_fingerprint": "j"}
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
    now = comparable(config) | {"data_fingerprint": "d", "generator_fingerprint": "g"}
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
        now = comparable(chosen) | {"data_fingerprint": "d"}
        older = json.loads(json.dumps(now))
        del older["refresh"]["first_stage"]
        if same:
            check_resumable(_tuples(older), now, chosen, tmp_path)
            continue
        with pytest.raises(ValueError, match=r"made with refresh\.first_stage=0 \(now 1\)"):
            check_resumable(_tuples(older), now, chosen, tmp_path)
