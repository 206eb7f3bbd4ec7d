"""A whole run: from its folder's state to the end of the curriculum, with a log, checkpoints and a report."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finpercep.engine.batches import is_out_of_memory
from finpercep.evaluation.climb import climb_figures
from finpercep.io.files import append_line, atomic_write, write_json
from finpercep.rl.config import RLConfig
from finpercep.rl.generators import GeneratorModule
from finpercep.rl.remarks import remarks
from finpercep.rl.report import CLIMB, write_report
from finpercep.rl.screen import measured
from finpercep.rl.trainer import RLTrainer
from finpercep.runs.interruption import Interruption
from finpercep.runs.lock import folder_lock
from finpercep.runs.monitors import Monitor, started
from finpercep.runs.state import check_same_step

METRICS = "metrics.jsonl"
_ENDS = "; the run ends here (started again, it goes on to the next measurement)"


def train(config: RLConfig, monitors: Sequence[Monitor] = ()) -> GeneratorModule:
    """Train to the end of the curriculum, resuming what is in `config.out`.

    Ctrl-C ends it after the step that is being made, and saves that. Each step adds a line to metrics.jsonl, with the
    stage, and the version and fingerprint of its reward. At the end there are <out>/generator, <out>/report.html and,
    of rewards that were refreshed, <out>/refreshed.

    Under torchrun or `accelerate launch` each process takes its share of a step's images; the first one writes.

    Args:
        config: the run.
        monitors: who is told of it: `rl.screen.RLScreen`, `runs.trackers.TensorBoard`.

    Returns:
        The trained generator, as it is in <out>/generator.

    Raises:
        ValueError: settings, data or models that do not fit, or a state that was made with others.
        OSError: data that are missing, another run in the folder, or no room in it; what was saved stays.
        FloatingPointError: a reward, a loss, a gradient or a held-out figure was not finite; what was saved stays.
        RatioError: Flow-GRPO's model answers otherwise in training than in sampling.
        MemoryError: there is no memory for a step; says what to lower.
        NotImplementedError: a generator without what a setting needs, such as `encode` for photos.
        ServiceError: a reward that a service computes has no answer.
        ConnectionError: another process has ended.
        KeyboardInterrupt: after Ctrl-C.
    """
    with _memory_explained():
        trainer = RLTrainer(config)
    out = Path(config.out)
    first = trainer.ranks.first
    with folder_lock(out) if first else nullcontext():
        resumed = trainer.resume()
        check_same_step(trainer.ranks.gathered(trainer.done), out)
        if first and not (resumed and trainer.finished):  # some settings, rewards and the judge may be others now
            held_out = {"held_out": len(trainer.held_out.batch)}
            write_json(out / "rl.json", {**trainer.settings, **asdict(config), **held_out})
        if first:
            _cut_metrics(out / METRICS, trainer.done if resumed else -1)
        if first and not (resumed and trainer.finished):
            (out / CLIMB).unlink(missing_ok=True)  # of a run that was here before
        names = zip((stage.reward for stage in config.stages), trainer.fingerprints, strict=True)
        stages = ", ".join(f"{name} ({fingerprint})" for name, fingerprint in names)
        lines = [f"{type(trainer.algorithm).__name__} against {stages}"]
        before: dict[str, float] = {}
        if not resumed:
            with _memory_explained():
                before = {"stage": 0, "version": 0, **trainer.evaluate()}
            _log(trainer, before)
            lines.append(measured(0, before))
        lines += remarks(trainer, before)
        lines += [f"resumed at step {trainer.done} from {out}"] if resumed else []
        told = monitors if first else ()
        with started(told, lines, done=trainer.done, total=trainer.curriculum.steps), Interruption() as asked:
            for monitor in told if before else ():
                monitor.log(0, before)
            while not trainer.finished:
                with _memory_explained():
                    if _step(trainer, told, asked):
                        break
        trainer.export()
        trainer.export_rewards()
        with _memory_explained():
            climbs = trainer.climb()
        if trainer.average is not None:
            trainer.average.adopt()
        if first:
            if climbs:
                write_json(out / CLIMB, climb_figures(climbs))
            if write_report(out) is None:
                said = f"{out / METRICS}: expected measurements for report.html, got none; it is not written"
                warnings.warn(said, stacklevel=2)
    return trainer.generator


def _step(trainer: RLTrainer, monitors: Sequence[Monitor], interruption: Interruption) -> bool:
    """One step, and what is due after it; returns whether an alarm ends the run."""
    config = trainer.config
    figures, known = trainer.step(), len(trainer.alarms)
    if trainer.done % config.eval_every == 0 or trainer.finished:
        figures |= trainer.evaluate()
    alarms = trainer.alarms[known:]
    stop = bool(alarms) and config.monitors.alarm == "stop"
    _log(trainer, figures, alarms)
    for monitor in monitors:
        monitor.log(trainer.done, {**figures, **trainer.times()})
    if trainer.ranks.first:
        for text in alarms:
            warnings.warn(f"step {trainer.done}: {text}{_ENDS if stop else ''}", stacklevel=3)
    asked = trainer.ranks.agreed(interruption.asked)
    if trainer.done % config.save_every == 0 or trainer.finished or asked or stop:
        trainer.save()
    if asked:
        trainer.export()
        trainer.export_rewards()
        raise KeyboardInterrupt
    return stop


@contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            "memory: expected enough for a step, got none free; set algorithm.rollout_batch, lower "
            "algorithm.micro_batch, algorithm.group_size, batch, side or eval_photos, or, of a pipeline of diffusers, "
            "set generator_options.checkpointing=true, decode=tiled, dtype=bfloat16"
        ) from error


def _log(trainer: RLTrainer, figures: dict[str, float], alarms: Sequence[str] = ()) -> None:
    if not trainer.ranks.first:
        return
    stage = int(figures["stage"])
    line: dict[str, Any] = {"step": trainer.done, **figures, "stage": stage, "version": int(figures["version"])}
    line |= {"reward": trainer.fingerprints[stage], **({"alarms": list(alarms)} if alarms else {})}
    if "blend" in figures:
        line |= {"reward_before": trainer.fingerprints[stage - 1], "version_before": trainer.version(stage - 1)}
    if trainer.switch and "eval/alarms" in figures:
        line["switch"] = trainer.switch
    append_line(Path(trainer.config.out) / METRICS, json.dumps(line))


def _cut_metrics(path: Path, done: int) -> None:
    """Leave out the lines of steps after the saved one: they come again."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
    with atomic_write(path) as file:
        file.write("".join(kept).encode())
