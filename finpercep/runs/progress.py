"""Progress on a terminal: one look for all that takes long."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["Screen", "progress_bar"]


def progress_bar(console: Console, **options: Any) -> Progress:
    """What is done, a bar, how many of how many, and the time that is left; `options` are those of rich's Progress."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, **options)


class Screen:
    """A `Monitor` that shows a run on stderr: a bar with its figures, or a line each time where that is no terminal."""

    def __init__(self, task: str = "training") -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.bar = progress_bar(self.console)
        self.task = self.bar.add_task(task, total=None)

    def start(self, lines: Sequence[str], *, done: int, total: int) -> None:
        for line in lines:
            self.console.print(line, soft_wrap=True, markup=False, emoji=False)
        self.bar.update(self.task, total=total, completed=done)
        self.bar.start()
        self.started, self.first = time.perf_counter(), done

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        rate = (step - self.first) / (time.perf_counter() - self.started)
        text = " ".join(f"{name} {value:.4f}" for name, value in figures.items()) + f"  {rate:.2f} steps/s"
        self.bar.update(self.task, completed=step, description=text)
        if not self.console.is_terminal:
            self.console.print(f"step {step}: {text}", soft_wrap=True)

    def close(self) -> None:
        self.bar.stop()
