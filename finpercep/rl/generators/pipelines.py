"""Pipelines of diffusers as generators: which, and how their parts are loaded."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finpercep.io.fingerprints import folder_fingerprint, weights_fingerprint
from finpercep.io.hub import check_hub_options
from finpercep.io.reasons import one_line
from finpercep.rl.generators.config import GeneratorConfig
from finpercep.rl.generators.latent import NEGATIVE, LatentGenerator
from finpercep.rl.generators.texts import open_pipeline, text_embeddings, text_parts

_HOME = "finpercep.rl.generators"
PIPELINES: Mapping[str, str] = {
    "StableDiffusionUpscalePipeline": f"{_HOME}.upscaler:UpscalerGenerator",
    "StableDiffusion3ControlNetPipeline": f"{_HOME}.flow:SD3Generator",
    "FluxControlNetPipeline": f"{_HOME}.flow:FluxGenerator",
}
"""Pipeline -> generator."""
CONTROLNETS: Mapping[str, str] = {
    "StableDiffusion3Pipeline": "StableDiffusion3ControlNetPipeline",
    "FluxPipeline": "FluxControlNetPipeline",
}
"""What a pipeline becomes with a ControlNet from elsewhere."""


def load_pipeline_generator(
    spec: str | Path, config: GeneratorConfig, empty: Mapping[str, Tensor], **hub_options: Any
) -> LatentGenerator:
    """A folder or hub id of a pipeline as a generator; see `PIPELINES`.

    Text encoders are loaded, used and let go before the rest is loaded, and not at all where `config.cache` or `empty`
    (see `load_generator`) has what they would say. Nothing is drawn from torch's global generator.

    Raises:
        ImportError: diffusers, or peft for adapters, is missing.
        ValueError: another pipeline, or one that cannot be loaded.
    """
    check_hub_options(hub_options)
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"{spec}: pipelines need diffusers ({error}); pip install 'finpercep[diffusers]'") from error
    folder = Path(spec)
    if not folder.is_dir():
        folder = Path(diffusers.DiffusionPipeline.download(str(spec), **hub_options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of adapters; the same whatever was loaded before
        name, parts = _parts(folder, config, diffusers)
        given = _given_texts(empty, name, config)
        texts = given or text_embeddings(folder, getattr(diffusers, name), config)
        without = dict.fromkeys(text_parts(folder))
        pipeline = open_pipeline(folder, getattr(diffusers, name), config, {**without, **parts})
        module, _, kind = PIPELINES[name].partition(":")
        found: type[LatentGenerator] = getattr(importlib.import_module(module), kind)
        return found(pipeline, texts, config, _fingerprint(folder, config, given))


def _given_texts(empty: Mapping[str, Tensor], name: str, config: GeneratorConfig) -> dict[str, Tensor]:
    """Embeddings of both prompts where they are the empty text, which is Stable Diffusion 3's; none else."""
    if config.prompt or config.negative_prompt or not name.startswith("StableDiffusion3"):
        return {}
    typed = {key: tensor.to(getattr(torch, config.dtype)) for key, tensor in empty.items()}
    return {**typed, **{NEGATIVE + key: tensor for key, tensor in typed.items()}}


def _parts(folder: Path, config: GeneratorConfig, diffusers: Any) -> tuple[str, dict[str, Any]]:
    """The pipeline's class, and the ControlNet where it comes from elsewhere."""
    index = folder / "model_index.json"
    try:
        name = str(json.loads(index.read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: expected that of a diffusers pipeline, got {one_line(error)}") from error
    parts: dict[str, Any] = {}
    if config.controlnet is not None and name in (*CONTROLNETS, *CONTROLNETS.values()):
        name = CONTROLNETS.get(name, name)
        kind = "SD3ControlNetModel" if "StableDiffusion3" in name else "FluxControlNetModel"
        try:
            parts["controlnet"] = getattr(diffusers, kind).from_pretrained(
                config.controlnet, torch_dtype=getattr(torch, config.dtype)
            )
        except Exception as error:
            raise ValueError(f"{config.controlnet}: expected a {kind}, got {one_line(error)}") from error
    elif config.controlnet is not None:
        raise ValueError(f"controlnet: expected a pipeline that takes one, got {name} in {folder}")
    if name not in PIPELINES:
        hint = "; name a controlnet, which tells it the low-resolution image" if name in CONTROLNETS else ""
        raise ValueError(f"{folder}: expected one of {', '.join(PIPELINES)}, got {name}{hint}")
    return name, parts


def _fingerprint(folder: Path, config: GeneratorConfig, texts: Mapping[str, Tensor]) -> str:
    found = folder_fingerprint(folder)
    if config.controlnet is not None and Path(config.controlnet).is_dir():
        found += folder_fingerprint(config.controlnet)
    return found + (weights_fingerprint([], texts) if texts else "")
