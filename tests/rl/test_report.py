"""What the page says of the alarm."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from finpercep.rl import report


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"held_out": 2}, "both by more than two standard errors over the 2 held-out photos"),
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


def test_pictures_of_every_measurement(tmp_path):
    """Of eight, one of which was lost: five are open, the others folded between them, in order."""
    (tmp_path / "pictures").mkdir()
    for step in range(8):
        picture = Image.effect_noise((64, 64), 90)
        if step != 3:
            picture.save(tmp_path / "pictures" / f"step-{step:06d}.png")
    page = report._pictures(tmp_path, [{"step": step} for step in range(8)])
    found = re.findall(r'<(/?details)>|<summary>(.*?)</summary>|alt="(step \d)"', page)
    fold = {n: ["details", f"step {n}", f"step {n}", "/details"] for n in range(8)}
    lost = ["details", "step 3", "/details"]
    assert ["".join(one) for one in found] == [
        "step 0",
        *fold[1],
        "step 2",
        *lost,
        "step 4",
        "step 5",
        *fold[6],
        "step 7",
    ]
    sizes = [len(source) for source in re.findall(r'src="([^"]*)"', page)]
    assert max(sizes[1], sizes[5]) < min(sizes[i] for i in (0, 2, 3, 4, 6))


def test_a_climb_test_is_shown_where_there_was_one(tmp_path):
    path = tmp_path / "climb.json"
    assert report._climb(path) == ""
    summary = dict.fromkeys(report.CLIMBED, 0.25) | {"climbs": 3, "median_step": None, "end": 0.75}
    path.write_text(json.dumps({"summary": summary}))
    page = report._climb(path)
    assert "<p>3 of these results were moved up the last reward, pixel by pixel, by 50 steps" in page
    assert "<td>score of the result</td><td>0.2500</td>" in page
    assert "<td>score of the climbed result</td><td>0.7500</td>" in page
    assert "<td>median of the steps at which they do</td><td></td>" in page


def test_stages_are_named(tmp_path):
    """What ended each: evidence, its steps, or the run."""
    stages = [{"reward": "a&b", "steps": 9}, {"reward": "c", "steps": 2}, {"reward": "d", "steps": 5}]
    said = {2: "stage 0 ends: it is flat", 4: "stage 1 goes on: it rises"}
    numbers = [0, 0, 0, 1, 1, 2]
    lines = [{"step": s, "stage": n, **({"switch": said[s]} if s in said else {})} for s, n in enumerate(numbers)]
    rows = re.findall(r"<td>(.*?)</td>", report._stages(lines, {"stages": stages}))
    assert rows[:3] == ["stage 0: a&amp;b", "1 to 2", "it is flat"]
    assert rows[3:] == ["stage 1: c", "3 to 4", "its 2 steps", "stage 2: d", "5 to 5", "the run's"]
    assert report._stages(lines, {"stages": stages[:1]}) == ""


def _write_log(folder, **last):
    line = {"stage": 0, "version": 0, "reward": "r", "eval/reward_avg": 0.5}
    lines = [{"step": step, **line, **(last if step == 2 else {})} for step in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
