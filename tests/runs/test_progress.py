"""What is shown of a run."""

from __future__ import annotations

import pytest

from finpercep.runs.progress import Screen


def test_folders_with_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.start(["resumed at step 3 from runs[a]/x[/b]/:x:"], done=3, total=4)
    screen.close()
    assert capsys.readouterr().err.splitlines()[0] == "resumed at step 3 from runs[a]/x[/b]/:x:"
