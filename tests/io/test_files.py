"""Files are whole or absent."""

from __future__ import annotations

import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from finpercep.io.files import atomic_write, read_text, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def stop() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_names_of_any_length_and_ending(tmp_path: Path) -> None:
    names = ["a" + "n" * 110 + ".png", "b" + "n" * 110 + ".png", "\u753b" * 82 + ".png"]  # the last has 250 bytes
    with ExitStack() as writing:
        for number, name in enumerate(names):
            writing.enter_context(atomic_write(tmp_path / name)).write(bytes([number]))
        left = [path.name for path in tmp_path.iterdir()]
        assert len(left) == 3
        assert all(name.startswith(".") and name.endswith(".tmp") for name in left)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict(
        zip(names, (b"\0", b"\1", b"\2"), strict=True)
    )


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    path, both = tmp_path / "a.png", threading.Barrier(2)

    def write(value: bytes) -> None:
        with atomic_write(path) as file:
            both.wait(20)
            file.write(value * 1000)
            both.wait(20)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (b"a", b"b")))
    assert path.read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert list(tmp_path.iterdir()) == [path]


def test_json_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_json(path, {"b": [1, 2], "a": None})
    assert json.loads(path.read_text()) == {"a": None, "b": [1, 2]}
    assert list(path.parent.iterdir()) == [path]


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "index.jsonl"
    path.write_bytes("é".encode())
    assert read_text(path) == "é"
    path.write_bytes("é".encode("latin-1") + b"x")
    with pytest.raises(ValueError, match=r"index\.jsonl: expected UTF-8 text, got b'\\xe9'"):
        read_text(path)


def test_a_pipe_is_written_through_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with atomic_write(path) as file:
            file.write(b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_shell_gives_as_a_file_is_written_through() -> None:
    """`>(cat)` is a link in /dev/fd to a pipe without a path of its own."""
    reader, writer = os.pipe()
    try:
        with atomic_write(Path(f"/dev/fd/{writer}")) as file:
            file.write(b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    link = tmp_path / "nothing"
    link.symlink_to(os.devnull)
    with atomic_write(link) as file:
        file.write(b"gone")
    assert link.is_symlink()
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_of_a_link_the_file_behind_it_is_replaced_whole(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "a.json", tmp_path / "b.json"
    target.parent.mkdir()
    link.symlink_to(Path("there") / "a.json")
    for value in (1, 2):  # the first time there is no file yet
        write_json(link, value)
        assert link.is_symlink()
        assert json.loads(target.read_text()) == value
    with pytest.raises(TypeError), atomic_write(link) as file:
        file.write("no bytes")  # type: ignore[arg-type]
    assert json.loads(target.read_text()) == 2
    assert sorted(tmp_path.rglob("*")) == sorted([link, target.parent, target])
