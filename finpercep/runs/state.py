"""The state of a run, for resuming: a kill at any moment leaves the previous or the new one, whole."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.utils._pytree import tree_leaves

from finpercep.io.files import atomic_write
from finpercep.io.reasons import one_line

__all__ = ["STATE", "check_settings", "read_state", "sized_write", "write_state"]

STATE = "state.pt"
_ADVICE = "delete it to begin anew, or go on from the saved model in another folder"


@contextmanager
def sized_write(path: Path, size: int) -> Iterator[BinaryIO]:
    """`atomic_write` of about `size` bytes.

    Raises:
        OSError: a full disk, no permission; names the path and the size, and what was there before stays.
    """
    try:
        with atomic_write(path) as file:
            yield file
    except OSError as error:
        raise OSError(f"{path}: expected to write {size / 1e6:.1f} MB, got {error.strerror or error}") from error


def write_state(state: dict[str, Any], folder: Path) -> None:
    """`state.pt`: what `read_state` gives back.

    Raises:
        OSError: see `sized_write`.
    """
    size = sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))
    with sized_write(folder / STATE, size) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # of torch's writer, when the file refused a block
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def read_state(folder: Path, parts: Collection[str], advice: str = _ADVICE) -> dict[str, Any] | None:
    """What `write_state` wrote, on the CPU; None where there is none. No code in the file is ever run.

    Args:
        folder: of the run.
        parts: what a state must have, e.g. "step", "model", "optimizer", "settings".
        advice: what to do where it cannot be read.

    Raises:
        ValueError: truncated, or another file; names it.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        # An optimizer moves what belongs on a GPU there by itself; AdamW's step counters stay on the CPU.
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = sorted(set(parts) - (state.keys() if isinstance(state, dict) else set()))
        if missing:
            raise ValueError(f"one without {', '.join(missing)}")
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: expected the state of a run, got a file that could run code; {advice}") from error
    except Exception as error:  # the zip reader raises many types
        raise ValueError(f"{path}: expected the state of a run, got {one_line(error, 200)}; {advice}") from error
    return state


def check_settings(was: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with other settings than those that the state was made with.

    Raises:
        ValueError: names what differs.
    """
    changed = [change for name in sorted(now) for change in _changes(name, was.get(name), now[name])]
    if changed:
        raise ValueError(
            f"{folder / STATE}: made with {', '.join(changed)}; use the same settings, or another folder "
            "(where `generator` of reinforcement learning, or `init` of a reward's training, may name this model)"
        )


def check_same_step(steps: Sequence[int], folder: str | Path) -> None:
    """Refuse to go on where processes have resumed at different steps.

    Args:
        steps: of all processes.
        folder: of the run, for the message.

    Raises:
        ValueError: they differ.
    """
    if len(found := sorted(set(steps))) > 1:
        raise ValueError(
            f"out: expected one folder for all processes, got {folder} with states of steps "
            f"{', '.join(map(str, found))}; it has to lie where all of them see it"
        )


def _changes(name: str, was: Any, now: Any) -> list[str]:
    """`name=was (now now)` of each part that differs: of `stages` the one number, and not all of them."""
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() == now.keys():
        return [change for key in sorted(now) for change in _changes(f"{name}.{key}", was[key], now[key])]
    lists = isinstance(was, list | tuple) and isinstance(now, list | tuple) and len(was) == len(now)
    if lists and all(isinstance(part, dict) for part in (*was, *now)):
        parts = enumerate(zip(was, now, strict=True))
        return [change for i, (a, b) in parts for change in _changes(f"{name}.{i}", a, b)]
    return [] if was == now else [f"{name}={was!r} (now {now!r})"]
