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
    _write_log(tmp_path)
    assert said in "".join(report.report_parts(tmp_path))


def test_an_alarm_is_shown_whatever_the_settings_say_now(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_curves", lambda *_: "")
    settings = {"eval_photos": 16, "held_out": 2, "monitors": {"alarm": "off", "patience": 1}}
    (tmp_path / "rl.json").write_text(json.dumps(settings))
    _write_log(tmp_path, alarms=["the judge fell"])
    page = "".join(report.report_parts(tmp_path))
    assert "step 2: the judge fell" in page
    assert "off" not in page


def _write_log(folder, **last):
    line = {"stage": 0, "version": 0, "reward": "r", "eval/reward_avg": 0.5}
    lines = [{"step": step, **line, **(last if step == 2 else {})} for step in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
