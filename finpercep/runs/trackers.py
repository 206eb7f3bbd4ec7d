"""Trackers: where the figures of a run are kept to be looked at later."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finpercep.io.files import atomic_write

__all__ = ["TensorBoard", "WeightsAndBiases"]

RUN_ID = "wandb-id.txt"
EVALUATION = "eval/"
"""Begins the names of what is measured beside training: they keep them, with no prefix."""


def _tracked(name: str, prefix: str) -> str:
    """Under which name a tracker keeps a figure."""
    return name if name.startswith(EVALUATION) else f"{prefix}/{name}"


class TensorBoard:
    """A `Monitor` that writes figures as TensorBoard events into a folder, as `<prefix>/<name>` or `eval/<name>`.

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
            # Points of later steps, from a run that was stopped before it saved, are hidden: they come again. So does
            # that of step 0, what was measured before training, where the run begins there.
            self.writer = self._new_writer(self.folder, purge_step=done + 1 if done else 0)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        with self._named():
            for name, value in figures.items():
                self.writer.add_scalar(_tracked(name, self.prefix), value, step)

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


class WeightsAndBiases:
    """A `Monitor` that sends figures to a project of Weights & Biases, as `<prefix>/<name>` or `eval/<name>`.

    A run that is resumed goes on under the id that its folder keeps in wandb-id.txt; steps that come again after a kill
    are there twice. Account, server and offline mode are W&B's own settings (`wandb login`, `WANDB_MODE=offline`).

    Args:
        folder: of the run.
        project: at W&B.
        prefix: of the names.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], project: str, prefix: str = "train") -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("wandb is not installed; pip install 'finpercep[wandb]'") from error
        self._wandb: Any = wandb
        self.folder, self.project, self.prefix = Path(folder), project, prefix

    def start(self, lines: Sequence[str], *, done: int, total: int) -> None:
        file = self.folder / RUN_ID
        known = file.read_text().strip() if file.is_file() else None
        config = {"about": list(lines), "steps": total}
        self.run = self._wandb.init(project=self.project, id=known, resume="allow", dir=str(self.folder), config=config)
        if known is None:
            with atomic_write(file) as out:
                out.write(self.run.id.encode())
        # Its own counter only rises; a resumed run may log a step again.
        for group in (f"{self.prefix}/*", f"{EVALUATION}*"):
            self.run.define_metric(group, step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log({"step": step, **{_tracked(name, self.prefix): value for name, value in figures.items()}})

    def close(self) -> None:
        self.run.finish()
