"""`load_generator`: a generator from its name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from finpercep.io.hub import model_folder
from finpercep.io.modules import imported
from finpercep.rl.generators.base import FILES, GeneratorModule
from finpercep.rl.generators.config import GeneratorConfig
from finpercep.rl.generators.tiny import SRTiny, embedded_folder, embedded_names

PIPELINE = "model_index.json"
ADAPTERS = "pytorch_lora_weights.safetensors"
"""As `GeneratorModule.save_pretrained` of a pipeline with adapters names them."""


def load_generator(
    spec: str | Path,
    config: GeneratorConfig | None = None,
    *,
    device: str = "cpu",
    empty_texts: Mapping[str, Tensor] | None = None,
    **hub_options: Any,
) -> GeneratorModule:
    """A generator by its name, in evaluation mode, ready to be trained.

    - ``finpercep-sr-tiny``, or a folder that `SRTiny.save_pretrained` wrote;
    - a pipeline of diffusers, a folder with model_index.json or a hub id, see `PIPELINES`;
    - ``module:Class``: a `GeneratorModule` of one's own from a module that can be imported. It is called without
      arguments, a function too; what is a generator already is taken as it is.

    Args:
        spec: the name.
        config: how a pipeline is trained and sampled.
        device: where the generator is to be.
        empty_texts: name -> (1, ...), embeddings of the empty text by Stable Diffusion 3's text encoders, which are
            then not loaded where both prompts are empty; see `rl.precomputed.empty_texts`.
        hub_options: for downloads, see `RewardModel.from_pretrained`.

    Raises:
        ImportError: diffusers or peft, or the module, is missing.
        ValueError: a name that names nothing, or a pipeline that cannot be a generator.
    """
    module, colon, name = str(spec).partition(":")
    if colon and name and not Path(spec).exists():
        return _own(module, name).eval().to(device)
    if (local := Path(spec).expanduser()).is_dir():
        spec = local
    folder = model_folder(embedded_folder(spec), (PIPELINE, *FILES), known=embedded_names(), **hub_options)
    if not (folder / PIPELINE).is_file() and (folder / ADAPTERS).is_file():
        raise ValueError(
            f"{folder}: expected a generator, got adapters alone; with diffusers, pipe.load_lora_weights, fuse_lora "
            "and save_pretrained make a pipeline of them that can be one"
        )
    if not (folder / PIPELINE).is_file():
        return SRTiny.from_pretrained(folder).to(device)
    from finpercep.rl.generators.pipelines import load_pipeline_generator

    generator = load_pipeline_generator(spec, config or GeneratorConfig(), empty_texts or {}, **hub_options)
    return generator.eval().to(device)


def _own(module: str, name: str) -> GeneratorModule:
    spec, made = f"{module}:{name}", imported(module, name)
    if inspect.isclass(made) or inspect.isfunction(made):
        _check_callable(made, spec)
        made = made()
    if not isinstance(made, GeneratorModule):
        raise ValueError(f"{spec}: expected a GeneratorModule, got {type(made).__name__}")
    if missing := [part for part in ("scale", "channels", "stride") if not hasattr(made, part)]:
        raise ValueError(f"{spec}: expected the attributes scale, channels and stride, got no {missing[0]}")
    if not made.trainable_parameters():
        raise ValueError(f"{spec}: expected parameters that ask for a gradient, got none")
    try:
        json.dumps(made.config)
    except TypeError as error:
        raise ValueError(f"{spec}: expected a config that JSON can hold, got {error}") from None
    return made


def _check_callable(made: Any, spec: str) -> None:
    try:
        inspect.signature(made).bind()
    except TypeError as error:
        raise ValueError(f"{spec}: expected what is called without arguments, got {error}") from None
    except ValueError:  # a built-in without a signature
        return
