"""What a state may be resumed with."""

from __future__ import annotations

from pathlib import Path

import pytest

from finpercep.runs.state import check_same_step, check_settings


def test_the_one_number_that_differs_is_named() -> None:
    def settings(steps: int) -> dict[str, object]:
        return {"seed": 1, "stages": [{"reward": "a", "steps": 5}, {"reward": "b", "steps": steps}]}

    check_settings(settings(5), settings(5), Path("run"))
    with pytest.raises(ValueError, match=r"^run/state\.pt: made with stages\.1\.steps=5 \(now 7\); use the same"):
        check_settings(settings(5), settings(7), Path("run"))


def test_lists_of_other_lengths_are_shown_whole() -> None:
    with pytest.raises(ValueError, match=r"made with data=\['a'\] \(now \['a', 'b'\]\), lr=None \(now 0\.1\);"):
        check_settings({"data": ["a"]}, {"data": ["a", "b"], "lr": 0.1}, Path("run"))


def test_processes_that_would_go_on_from_different_steps():
    check_same_step([4, 4, 4], "runs/a")
    with pytest.raises(ValueError, match=r"out: expected one folder for all processes, got runs/a with .* steps 0, 4;"):
        check_same_step([4, 0, 4], "runs/a")
