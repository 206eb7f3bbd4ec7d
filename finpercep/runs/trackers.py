"""Trackers: where the figures of a run are kept to be looked at later."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["TensorBoard"]


class TensorBoard:
    """A `Monitor` that writes figures as TensorBoard events into a folder, each as `<prefix>/<name>`.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], prefix: str = "train") -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard is not installed; pip install 'finpercep[train]'") from error
        self._new_writer: Any = SummaryWriter
        self.folder, self.prefix = os.fspath(folder), prefix

    def start(self, lines: Sequence[str], *, done: int, total: int) -> None:
        self._hook, threading.excepthook = threading.excepthook, self._leave_to_us
        with self._named():
            # Points of later steps, from a run that was stopped before it saved, are hidden: they come again.
            self.writer = self._new_writer(self.folder, purge_step=done + 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        with self._named():
            for name, value in figures.items():
                self.writer.add_scalar(f"{self.prefix}/{name}", value, step)

    def close(self) -> None:
        with self._named():
            self.writer.close()
        threading.excepthook = self._hook

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the writer's thread come with its next call, without the path."""
        try:
            yield
        except OSError as error:
            threading.excepthook = self._hook
            reason = error.strerror or error
            raise OSError(f"{self.folder}: expected to write TensorBoard's events, got {reason}") from error

    def _leave_to_us(self, args: threading.ExceptHookArgs) -> None:
        """Keep that thread from printing the error that `_named` raises."""
        if not type(args.thread).__module__.startswith("tensorboard"):
            self._hook(args)
