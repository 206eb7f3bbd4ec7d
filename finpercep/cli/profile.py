"""``finpercep profile``: where a model's time goes, or that of a loop of one's own."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finpercep.cli.common import (
    DEFAULT_MODEL,
    DeviceOption,
    ModelOption,
    ThreadsOption,
    load_model,
    one_line_errors,
    set_threads,
)
from finpercep.cli.options import refuse_given
from finpercep.io.modules import imported

if TYPE_CHECKING:
    from finpercep.models import RewardModel


def profile(
    ctx: typer.Context,
    out: Annotated[Path, typer.Argument(help="Folder for index.html, profile.json, roofline.png and trace.json.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- ARGUMENTS", help="With --loop: what its module finds in sys.argv.", show_default=False
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Images in a batch; repeats. [1 and 4]")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option("--size", help="Side in pixels, or HEIGHTxWIDTH; repeats. Default: 512.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", help="fp32, bf16 or fp16; repeats. Default: fp32.")
    ] = None,
    compile: Annotated[
        str | None,
        typer.Option("--compile", help="A mode of torch.compile: default, reduce-overhead, max-autotune."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Calls that are timed of each batch.")] = 20,
    loop: Annotated[
        str | None,
        typer.Option(
            "--loop",
            help="Instead of a model: a function MODULE:NAME without arguments that runs one step of a loop; its parts "
            "are labeled with finpercep.engine.span or torch.profiler.record_function.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of --loop that are timed, after one.")] = 10,
    trace: Annotated[bool, typer.Option(help="Also write trace.json, which ui.perfetto.dev shows.")] = True,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Time every stage of a reward model against what this machine can do, and write a page about it.

    Stages: load, preprocess, encoder, decoder, modulate, head, copy back, each with its bytes, FLOPs and share of a
    copy or a matrix product measured in the same run; of the whole the first call, p50, p95, p99 (from --rounds 100
    on) and peak memory.

    With --loop: the shares that the labeled parts of your own loop take of it.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler says when it starts; without a GPU, an error
    if loop is None:
        refuse_given(ctx, "steps", reason="with --loop")
        if arguments:
            print(f"{arguments[0]}: expected arguments only with --loop", file=sys.stderr)
            raise typer.Exit(2)
        with one_line_errors(2, ValueError):
            sizes = [_size(text) for text in size or ["512"]]
            dtypes = [_dtype(text) for text in dtype or ["fp32"]]
            _check_mode(compile)
        loaded = load_model(model, device, threads)
        with one_line_errors(1, ImportError, OSError, RuntimeError):
            out.mkdir(parents=True, exist_ok=True)  # before the work that is written there
            page = _profile_model(loaded, model, out, batch or [1, 4], sizes, dtypes, compile, rounds, trace)
    else:
        unused = ("model", "batch", "size", "dtype", "compile", "rounds", "device")
        refuse_given(ctx, *unused, reason="without --loop, whose function decides it")
        set_threads(threads)
        with _sys_argv([loop.partition(":")[0], *(arguments or [])]):
            page = _profile_loop(loop, out, steps, trace)
    print(f"page: {page}")


def _profile_model(
    model: RewardModel,
    name: str,
    out: Path,
    batches: list[int],
    sizes: list[tuple[int, int]],
    dtypes: list[Any],
    compile: str | None,
    rounds: int,
    trace: bool,
) -> Path:
    import copy

    import torch

    from finpercep.engine.profile import Ceilings, profile_model, stages_of
    from finpercep.engine.profile_page import write_report
    from finpercep.engine.spans import profiled

    found = profile_model(model, name, batches=batches, sizes=sizes, dtypes=dtypes, compile=compile, rounds=rounds)
    page = write_report(found, out, trace=trace)
    if trace:  # apart, since it slows what it sees
        images = torch.randint(0, 256, (batches[0], 3, *sizes[0]), dtype=torch.uint8)
        with profiled(trace=out / "trace.json"):
            stages_of(copy.deepcopy(model).to(dtypes[0]), images, Ceilings(1, 1), 2)
    for row in found["timings"]:
        shape = f"{row['batch']} x {row['height']} x {row['width']}, {row['dtype']}"
        times = {"p50": row["p50"], "p95": row["p95"], "p99": row["p99"], "first": row["first_call"]}
        shown = [f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items() if seconds is not None]
        print(f"{shape}: {', '.join(shown)}")
        print("  " + ", ".join(f"{s['name']} {s['part']:.0%}" for s in row["stages"]))
    return page


def _profile_loop(spec: str, out: Path, steps: int, trace: bool) -> Path:
    from finpercep.engine.profile_page import write_loop_report
    from finpercep.engine.spans import profiled

    with one_line_errors(2, ValueError, ImportError):
        step = _function(spec)
    with one_line_errors(1, OSError):
        out.mkdir(parents=True, exist_ok=True)
    step()  # what is made on first use is not the loop
    with profiled(trace=out / "trace.json" if trace else None) as found:
        for _ in range(steps):
            step()
    print(found.table())
    with one_line_errors(1, OSError):
        return write_loop_report(found.times(), out, f"{steps} steps of {spec}", trace=trace)


@contextmanager
def _sys_argv(words: list[str]) -> Iterator[None]:
    """Inside, what a loop's own parser of arguments finds."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def _function(spec: str) -> Any:
    module, colon, name = spec.partition(":")
    if not (module and colon and name):
        raise ValueError(f"--loop: expected MODULE:NAME, got {spec}")
    try:
        found = imported(module, name)
    except (ImportError, ValueError) as error:
        raise type(error)(f"--loop: {error}") from None
    if not callable(found):
        raise ValueError(f"--loop: expected a function {spec}, got {type(found).__name__}")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ValueError(f"--loop: expected a function without arguments, got {spec}: {error}") from None
    return found


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if match is None:
        raise ValueError(f"--size: expected a side or HEIGHTxWIDTH in pixels, got {text}")
    return int(match[1]), int(match[2] or match[1])


def _dtype(text: str) -> Any:
    from finpercep.engine.dtypes import DTYPES, NAMED_DTYPES

    if text not in NAMED_DTYPES:
        raise ValueError(f"--dtype: expected {', '.join(DTYPES)}, got {text}")
    return NAMED_DTYPES[text]


def _check_mode(mode: str | None) -> None:
    from finpercep.engine.executor import COMPILE

    if mode not in COMPILE:
        raise ValueError(f"--compile: expected {', '.join(map(str, COMPILE[1:]))}, got {mode}")
