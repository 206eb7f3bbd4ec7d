"""What the page says of the alarm."""

from __future__ import annotations

import json

import pytest

from finpercep.rl import report


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"held_out": 2}, "No alarm: the reward did not rise"),
        ({"held_out": 1}, "One held-out photo is too few for the alarm."),
        ({"eval_photos": 1}, "One held-out photo is too few for the alarm."),
        ({"held_out": 1, "monitors": {"alarm": "off", "patience": 1}}, "The alarm was off."),
    ],
)
def test_runs_without_an_alarm(tmp_path, monkeypatch, settings, said):
    monkeypatch.setattr(report, "_curves", lambda *_: "")
    settings = {"eval_photos": 16, "monitors": {"alarm": "warn", "patience": 1}, **settings}
    (tmp_path / "rl.json").write_text(json.dumps(settings))
    line = {"stage": 0, "version": 0, "reward": "r", "eval/reward_avg": 0.5}
    log = "".join(json.dumps({"step": step, **line}) + "\n" for step in range(3))
    (tmp_path / "metrics.jsonl").write_text(log)
    assert said in "".join(report.report_parts(tmp_path))
