"""What of a run belongs on a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from finpercep.runs.progress import Screen

SHOWN = {
    "stage": "stage {:.0f}",
    "loss": "loss {:.4g}",
    "reward_avg": "reward {:.3f}",
    "time/images_per_second": "{:.1f} images/s",
    "time/rollout": "rollout {:.0%}",
    "time/reward": "reward {:.0%}",
    "time/update": "update {:.0%}",
}
MEASURED = {"eval/reward_avg": "reward {:.3f}", "eval/psnr": "PSNR {:.2f}", "eval/severity": "severity {:.3f}"}


def measured(step: int, figures: Mapping[str, float]) -> str:
    """A line about a measurement on held-out photos; empty where there was none."""
    found = ", ".join(form.format(figures[name]) for name, form in MEASURED.items() if name in figures)
    stage = f"stage {figures['stage']:.0f}, " if "stage" in figures else ""  # rewards of two do not compare
    return f"step {step}, held-out photos: {stage}{found}" if found else ""


class RLScreen(Screen):
    """A bar with the reward, images per second and the shares of time; and a line for each measurement."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if not step:
            return  # it is among the lines of the start
        text = " ".join(form.format(figures[name]) for name, form in SHOWN.items() if name in figures)
        self.bar.update(self.task, completed=step, description=text)
        if not self.console.is_terminal:
            self.console.print(f"step {step}: {text}", soft_wrap=True)
        if line := measured(step, figures):
            self.console.print(line, soft_wrap=True)
