"""The lock of a folder: who holds it is named, and a process that is gone holds nothing."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from finpercep.runs import lock
from finpercep.runs.lock import LOCK, FolderInUseError, folder_lock

HOLDER = """
import os, sys, time
from finpercep.runs.lock import folder_lock
with folder_lock(sys.argv[2]):
    if sys.argv[1] == "fork":
        ready, begun = os.pipe()
        if os.fork() == 0:
            os.write(begun, b"1")  # a forked process closes the lock's file before it gets here
            time.sleep(60)
        os.read(ready, 1)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, how: str = "alone") -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDER, how, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Its session's processes, forked ones included."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_the_folder_is_free_again_and_as_it_was(tmp_path: Path) -> None:
    for _ in range(2):
        with folder_lock(tmp_path):
            assert (tmp_path / LOCK).is_file()
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_stays_empty_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad"), folder_lock(tmp_path / "a" / "run"):
        raise ValueError("bad")
    assert not (tmp_path / "a" / "run").exists()
    with folder_lock(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_the_holder_is_named(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(FolderInUseError) as caught, folder_lock(tmp_path):
            pass
    finally:
        end(process)
    message = str(caught.value)
    who = f"in use by process {process.pid} on {socket.gethostname()} (-c alone) since 2"
    assert message.startswith(f"{tmp_path}: expected a folder that no other run is using, got one {who}")
    assert "\n" not in message


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_killed_holder_holds_nothing(tmp_path: Path, how: str) -> None:
    """Neither do the workers that it forked, should they live on."""
    process = hold(tmp_path, how)
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).is_file()
    try:
        with folder_lock(tmp_path):
            assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    finally:
        if how == "fork":
            end(process)
        elif process.stdout is not None:
            process.stdout.close()
    assert not (tmp_path / LOCK).exists()


def test_two_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with folder_lock(tmp_path), pytest.raises(FolderInUseError, match=f"process {os.getpid()} "), folder_lock(tmp_path):
        pass


def test_a_file_that_went_away_while_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is on the file that stands in the folder, not on one that its last holder has just removed."""
    locks, lock_file = [], lock._lock

    def late(descriptor: int, path: Path) -> None:
        if not locks:
            path.unlink()
        locks.append(descriptor)
        lock_file(descriptor, path)

    monkeypatch.setattr(lock, "_lock", late)
    with folder_lock(tmp_path):
        assert len(locks) == 2
        assert (tmp_path / LOCK).stat().st_ino == os.fstat(locks[1]).st_ino


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with folder_lock(tmp_path):
        pass
    monkeypatch.setattr("fcntl.flock", lambda *_: os.close(-1))
    with pytest.raises(OSError, match="Bad file descriptor"), folder_lock(tmp_path):
        pass
