"""``finpercep serve``: a reward over HTTP."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from finpercep.cli.common import DEFAULT_MODEL, MODEL_HELP, DeviceOption, check_device, one_line_errors
from finpercep.cli.options import given, settings_command
from finpercep.io.files import read_text

Serve = settings_command("finpercep.engine.serve.settings:ServeSettings", after="model")


def serve(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help=f"{MODEL_HELP} Or another reward: MODULE:NAME, pyiqa:NAME, 'A + 0.5*B'."),
    ] = DEFAULT_MODEL,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="Cores of a replica; 0 shares this machine's among them.")
    ] = 0,
    device: DeviceOption = "auto",
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help="File with the token that requests must carry. Default: the environment variable FINPERCEP_TOKEN.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Of a Ray cluster that runs, e.g. auto. Default: one is started here."),
    ] = None,
) -> None:
    """Serve scores and maps over HTTP, by Ray Serve (extra serve), until Ctrl-C.

    POST /score takes a PNG, several of them as a form, or raw pixels, and answers with JSON; GET /health and /info
    say how it is. finpercep.rewards.RemoteReward is the client. A host that others reach needs a token.
    """
    from finpercep.engine.serve.settings import ServeSettings

    with one_line_errors(2, ValueError, OSError):
        settings = ServeSettings(**given(ctx, ServeSettings))
        token = _token(token_file)
        _check_model(model)
    if not address and not os.environ.get("RAY_ADDRESS"):  # of a cluster, other machines may have it
        device = check_device(device)
    cores = threads or max(1, (os.cpu_count() or 1) // settings.replicas)
    _hear_ray_only_in_trouble()
    with one_line_errors(2, ValueError, ImportError), one_line_errors(1, OSError, RuntimeError):
        from finpercep.engine.serve.on_ray import serving, wait_for_the_end

        with serving(model, settings, device=device, cores=cores, token=token, address=address) as url:
            print(f"{model}: {url}/score; metrics on port {settings.metrics_port}; Ctrl-C ends", flush=True)
            wait_for_the_end()
    print("ended", file=sys.stderr)


def _check_model(model: str) -> None:
    """Refuse a name that names nothing, and damaged files, before a cluster is started for them."""
    from finpercep.models import load_base
    from finpercep.models.presets import PRESETS
    from finpercep.rewards.load import weights_by_name

    for name in weights_by_name(model):
        if ":" not in name and name not in PRESETS:
            load_base(name)  # a moment, beside the start of Ray


def _token(file: Path | None) -> str | None:
    from finpercep.rewards.remote import TOKEN

    token = os.environ.get(TOKEN, "").strip() if file is None else read_text(file).strip()
    if file is not None and not token:
        raise ValueError(f"{file}: expected a token, got an empty file")
    return token or None


def _hear_ray_only_in_trouble() -> None:
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
