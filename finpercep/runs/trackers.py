"""Trackers: where the figures of a run are kept to be looked at later."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
        # Points of later steps, from a run that was stopped before it saved, are hidden: they come again.
        self.writer = self._new_writer(self.folder, purge_step=done + 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(f"{self.prefix}/{name}", value, step)

    def close(self) -> None:
        self.writer.close()
