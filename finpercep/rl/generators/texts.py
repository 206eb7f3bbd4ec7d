"""Embeddings of prompts: computed once, and kept on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finpercep.io.fingerprints import folder_fingerprint
from finpercep.io.reasons import one_line
from finpercep.rl.cache import TensorCache
from finpercep.rl.generators.config import GeneratorConfig

TEXT_PARTS = ("text_encoder", "tokenizer")


def text_parts(folder: Path) -> list[str]:
    """The parts of a pipeline that texts need, by name: text encoders and tokenizers."""
    return [name for name in json.loads((folder / "model_index.json").read_text()) if name.startswith(TEXT_PARTS)]


def open_pipeline(folder: Path, kind: Any, config: GeneratorConfig, parts: dict[str, Any]) -> Any:
    """The pipeline of a folder, with `parts` in place of its own; None leaves a part out.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        dtype = getattr(torch, config.dtype)
        types = dtype if dtype == torch.float32 else {"vae": torch.float32, "default": dtype}
        return kind.from_pretrained(str(folder), torch_dtype=types, **parts)
    except Exception as error:  # of many libraries, and of many types
        raise ValueError(f"{folder}: expected a {kind.__name__}, got {one_line(error)}") from error


def text_embeddings(folder: Path, kind: Any, config: GeneratorConfig) -> dict[str, Tensor]:
    """What the pipeline's text encoders say of prompt and negative prompt: name -> (1, ...), see `LatentGenerator`."""
    names = text_parts(folder)
    key = {name: folder_fingerprint(folder / name) for name in names if (folder / name).is_dir()}
    key |= {
        "prompt": config.prompt,
        "negative": config.negative_prompt,
        "pipeline": kind.__name__,
        "type": config.dtype,
    }
    cache = None if config.cache is None else TensorCache(Path(config.cache) / "texts")
    if cache is not None and (found := cache.get(key)) is not None:
        return found
    index = json.loads((folder / "model_index.json").read_text())
    others = [name for name, value in index.items() if isinstance(value, list) and name not in names]
    keep = [name for name in others if name in ("scheduler", "low_res_scheduler")]
    pipeline = open_pipeline(folder, kind, config, {**dict.fromkeys({*others, "controlnet"} - {*keep})})
    with torch.no_grad():
        made = {name: tensor.contiguous() for name, tensor in _encode(pipeline, config).items()}
    if cache is not None:
        cache.put(key, made)
    return made


def _encode(pipeline: Any, config: GeneratorConfig) -> dict[str, Tensor]:
    prompt, negative = config.prompt, config.negative_prompt
    kind = type(pipeline).__name__
    if kind.startswith("Flux"):
        text, pooled, _ = pipeline.encode_prompt(prompt, prompt)
        other, other_pooled, _ = pipeline.encode_prompt(negative, negative)
    elif kind.startswith("StableDiffusion3"):
        text, other, pooled, other_pooled = pipeline.encode_prompt(
            prompt, None, None, negative_prompt=negative, do_classifier_free_guidance=True
        )
    else:
        text, other = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, True, negative)
        return {"prompt_embeds": text, "negative_prompt_embeds": other}
    return {
        "prompt_embeds": text,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": other,
        "negative_pooled_prompt_embeds": other_pooled,
    }
