"""Standard output and standard error as they may be: closed, full, or fed with names that no terminal should see."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

__all__ = ["OutputError", "checked_output", "quiet_libraries"]


class OutputError(OSError):
    """Standard output could not be written to."""


class _Checked:
    """A stream whose failures to write are `OutputError`; a pipe whose reader has gone stays what it is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _as_output_error():
            return self._stream.write(text)

    def flush(self) -> None:
        with _as_output_error():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _as_output_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise OutputError(f"standard output: expected to write to it, got {error.strerror or error}") from error


@contextmanager
def checked_output() -> Iterator[None]:
    """Run a command inside: a standard output that is closed or full ends it with one line on stderr and status 1."""
    if sys.stderr is None:  # closed: there is nobody to tell
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        print("standard output: expected an open one, got a closed one", file=sys.stderr)
        sys.exit(1)
    stream = sys.stdout
    sys.stdout = _Checked(stream)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OutputError as error:
        print(error, file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is left to write has nowhere to go
        sys.exit(1)
    finally:
        sys.stdout = stream


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, stderr holds what this package says and nothing else: no warnings, nothing that C libraries print."""
    stream = cast(TextIO, sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if stream is not sys.__stderr__ or stream.fileno() != 2:  # stands in for the real one already
            yield
            return
        stream.flush()
        ours, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        sys.stderr = open(ours, "w", buffering=1, encoding=stream.encoding, errors=stream.errors)  # noqa: SIM115
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(ours, 2)
            sys.stderr.close()
            os.close(nowhere)
            sys.stderr = stream
