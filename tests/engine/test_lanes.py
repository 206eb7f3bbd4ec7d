"""`Lanes`: either all threads start, or none is left waiting."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from finpercep.engine.lanes import Lanes


def test_threads_that_do_not_start_are_an_error_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def scarce(thread: threading.Thread) -> Any:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        thread.daemon = True  # where this fails they would keep the process from ending
        return start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", scarce)
        with pytest.raises(RuntimeError, match=r"^lanes: expected to start 3 threads, got: can't start new thread$"):
            Lanes(3, 1)
    for thread in started:
        thread.join(20)
    assert [thread.is_alive() for thread in started] == [False, False]
    lanes = Lanes(2, 1)
    assert lanes.submit(sum, [1, 2]).result() == 3
    lanes.close()


def test_work_of_a_lane_that_gives_work_to_its_lanes_is_done_there() -> None:
    """It would wait for itself."""
    lanes, others = Lanes(1, 1), Lanes(1, 1)

    def names(inner: Lanes) -> list[int]:
        return [threading.get_ident(), inner.submit(threading.get_ident).result(20)]

    own, other = lanes.submit(names, lanes).result(60), lanes.submit(names, others).result(60)
    assert own[0] == own[1] == other[0] != other[1]
    with pytest.raises(ZeroDivisionError):
        lanes.submit(lambda: lanes.submit(lambda: 1 // 0).result(20)).result(60)
    lanes.close()
    others.close()
