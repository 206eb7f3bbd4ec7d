"""Options of a generator: what of it is trained, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass

from finpercep.rl.checks import at_least_one, finite

TRAINED = ("lora", "full")
DECODING = ("whole", "sliced", "tiled")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of joint attention, on the text's side
)
"""The attention layers of diffusers' UNets and transformers."""


@dataclass(frozen=True)
class GeneratorConfig:
    """How a pipeline of diffusers is trained and sampled; the embedded generator takes none of it and is trained whole.

    Attributes:
        train: "lora": adapters on `layers`; "full": all of the UNet or transformer.
        rank, alpha: of the adapters; their product is scaled by alpha / rank.
        layers: which layers get adapters, by the ends of their names; those that are not in the model are left out.
        guidance: of classifier-free guidance, 1 is none; in rollouts and in training alike. Models that are told their
            guidance instead (FLUX.1 dev) are told this number.
        prompt, negative_prompt: of all images; rewards that take prompts are told the first, whatever the generator.
        noise_level: of the noise on low-resolution images that `StableDiffusionUpscalePipeline` takes, a timestep.
        controlnet: folder or hub id of the ControlNet, where the pipeline's folder has none.
        control_scale: weight of the ControlNet.
        scale: how many times larger results are; `StableDiffusionUpscalePipeline` knows it itself.
        shift_side: side of results, pixels, for schedulers whose shift depends on it; None is a run's `side`, and 512
            where there is no run.
        checkpointing: recompute activations in the backward pass instead of keeping them: less memory, more time.
        decode: "sliced" decodes one image at a time, "tiled" in overlapping tiles, for images too large for the memory.
        dtype: of the frozen weights and of the computation; what is trained is float32, and so is the VAE. "float16"
            is for sampling alone.
        cache: folder for embeddings of texts, and latents of low-resolution images that are used whole, which are then
            never mirrored or turned; None computes them each time.

    Raises:
        ValueError: an option out of its range.
    """

    train: str = "lora"
    rank: int = 32
    alpha: int = 64
    layers: tuple[str, ...] = ATTENTION
    guidance: float = 1.0
    prompt: str = ""
    negative_prompt: str = ""
    noise_level: int = 20
    controlnet: str | None = None
    control_scale: float = 1.0
    scale: int = 4
    shift_side: int | None = None
    checkpointing: bool = False
    decode: str = "whole"
    dtype: str = "float32"
    cache: str | None = None

    def __post_init__(self) -> None:
        for name, values in (("train", TRAINED), ("decode", DECODING), ("dtype", DTYPES)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: expected one of {', '.join(values)}, got {getattr(self, name)!r}")
        finite(self, "guidance", "control_scale")
        at_least_one(self, "rank", "alpha", "scale", "guidance")
        if self.shift_side is not None:
            at_least_one(self, "shift_side")
        if not self.layers:
            raise ValueError("layers: expected the names of layers to adapt, got none")
