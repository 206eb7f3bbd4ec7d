"""`StableDiffusion3ControlNetPipeline` and `FluxControlNetPipeline`: flow models that a ControlNet tells the image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.rl.batch import LATENT, Batch
from finpercep.rl.coordinates import Steps, is_flow, scheduler_steps
from finpercep.rl.generators.config import GeneratorConfig
from finpercep.rl.generators.latent import Condition, LatentGenerator

PATCH = 2
SHIFT_SIDE = 512
"""Of `GeneratorConfig.shift_side` where nobody says how large results are."""


class ControlNetGenerator(LatentGenerator):
    """A transformer whose blocks get what a frozen ControlNet makes of the enlarged image's latents."""

    part = "transformer"

    def __init__(self, pipeline: Any, texts: Mapping[str, Tensor], config: GeneratorConfig, fingerprint: str) -> None:
        super().__init__(pipeline, texts, config, fingerprint)
        if pipeline.controlnet is None or not hasattr(pipeline.controlnet, "config"):
            kind = type(pipeline.controlnet).__name__
            raise ValueError(f"controlnet: expected one ControlNet that takes the low-resolution image, got {kind}")
        if not is_flow(pipeline.scheduler):
            raise ValueError(
                f"scheduler: expected a flow-matching one for {self.pipeline_class}, such as "
                f"FlowMatchEulerDiscreteScheduler, got {type(pipeline.scheduler).__name__}"
            )
        self.controlnet = pipeline.controlnet.requires_grad_(False)
        self.scale, self.channels = config.scale, self.vae.config.latent_channels
        self.timescale = float(self.scheduler.config.num_train_timesteps)

    def networks(self) -> list[nn.Module]:
        """The transformer, the decoder of the VAE, and the ControlNet."""
        return [*super().networks(), self.controlnet]

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Latents of the enlarged low-resolution images, computed once for all uses of the batch."""
        if LATENT in batch.extras:
            return batch
        return batch.with_extras({LATENT: self.latents_of(batch.lr)})

    def latents_of(self, lr: Tensor) -> Tensor:
        """Latents (B,C,H/8,W/8) of low-resolution images, enlarged to the results' size by bicubic interpolation."""
        self.check_sides(lr * 1, PATCH * self.stride // math.gcd(PATCH * self.stride, self.scale))
        return self.encode(F.interpolate(lr.float(), scale_factor=self.scale, mode="bicubic").clamp(0, 1))

    def told(self, batch: Batch) -> Condition:
        """The latents."""
        return {LATENT: self.prepare(batch).extras[LATENT].float()}

    def steps(self, count: int) -> Steps:
        """The scheduler's, from s = 1; a shift that depends on the image's size is that of `shift_side`."""
        config, options = self.scheduler.config, {}
        if config.get("use_dynamic_shifting"):
            side = self.options.shift_side or SHIFT_SIDE
            options["mu"] = shift_of((side // (PATCH * self.stride)) ** 2, config)
        return scheduler_steps(self.scheduler, count, **self.sigmas(count), **options)

    def sigmas(self, count: int) -> dict[str, list[float]]:
        """What the pipeline tells the scheduler; nothing by default."""
        return {}


def shift_of(tokens: int, config: Any) -> float:
    """mu of a scheduler for that many tokens: on the line through (base_image_seq_len, base_shift) and the maximum."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(base + (tokens - low) * (top - base) / (high - low))


class SD3Generator(ControlNetGenerator):
    """Stable Diffusion 3 and 3.5."""

    pipeline_class = "StableDiffusion3ControlNetPipeline"

    def predict(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        config, pooled = self.controlnet.config, condition["pooled_prompt_embeds"]
        control = condition[LATENT]
        if config.force_zeros_for_pooled_projection:  # of InstantX, trained on latents without shift
            control, told = control + self._shift * self.vae.config.scaling_factor, torch.zeros_like(pooled)
        else:
            told = pooled
        at = {"hidden_states": x, "timestep": s * self.timescale, "return_dict": False}
        blocks = self.controlnet(
            **at,
            controlnet_cond=control,
            conditioning_scale=self.options.control_scale,
            encoder_hidden_states=None if config.joint_attention_dim is None else condition["prompt_embeds"],
            pooled_projections=told,
        )[0]
        return self.denoiser(
            **at,
            encoder_hidden_states=condition["prompt_embeds"],
            pooled_projections=pooled,
            block_controlnet_hidden_states=blocks,
        )[0]


class FluxGenerator(ControlNetGenerator):
    """FLUX.1: the transformer sees 2×2 latents as one token."""

    pipeline_class = "FluxControlNetPipeline"

    def __init__(self, pipeline: Any, texts: Mapping[str, Tensor], config: GeneratorConfig, fingerprint: str) -> None:
        super().__init__(pipeline, texts, config, fingerprint)
        if self.controlnet.input_hint_block is not None:
            raise ValueError(
                "controlnet: expected one that takes latents, got one that takes pixels (input_hint_block)"
            )

    def compile_networks(self) -> None:
        """See `GeneratorModule`.

        Raises:
            ValueError: with checkpointing, which `torch.compile` cannot take of this transformer (torch 2.14).
        """
        if self.options.checkpointing:
            raise ValueError("compile: expected generator_options.checkpointing false of FLUX, got both true")
        super().compile_networks()

    @property
    def guided(self) -> bool:
        """A model that is told its guidance needs no second answer."""
        return super().guided and not self.denoiser.config.guidance_embeds

    def sigmas(self, count: int) -> dict[str, list[float]]:
        return {"sigmas": [1 - i / count for i in range(count)]}

    def predict(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        height, width = x.shape[-2:]
        given = {
            "hidden_states": pack(x),
            "encoder_hidden_states": condition["prompt_embeds"],
            "pooled_projections": condition["pooled_prompt_embeds"],
            "timestep": s,
            "img_ids": places(height // PATCH, width // PATCH, x.device),
            "txt_ids": torch.zeros(condition["prompt_embeds"].shape[1], 3, device=x.device),
            "return_dict": False,
        }
        blocks, single = self._control(given, condition[LATENT])
        answer = self.denoiser(
            **given,
            controlnet_block_samples=blocks,
            controlnet_single_block_samples=single,
            guidance=self._guidance(self.denoiser, x),
        )[0]
        return unpack(answer, height, width)

    def _control(self, given: dict[str, Any], latents: Tensor) -> list[list[Tensor] | None]:
        """What the ControlNet adds; under guidance it hears the prompt alone, and both answers get that."""
        rows = slice(len(latents) // 2, None) if self.guided else slice(None)
        shared = ("img_ids", "txt_ids", "return_dict")
        found = self.controlnet(
            **{name: value if name in shared else value[rows] for name, value in given.items()},
            controlnet_cond=pack(latents[rows]),
            conditioning_scale=self.options.control_scale,
            guidance=self._guidance(self.controlnet, latents[rows]),
        )
        times = 2 if self.guided else 1
        return [None if blocks is None else [torch.cat([block] * times) for block in blocks] for blocks in found]

    def _guidance(self, model: Any, x: Tensor) -> Tensor | None:
        if not model.config.guidance_embeds:
            return None
        return torch.full((len(x),), self.options.guidance, device=x.device)


def pack(latents: Tensor) -> Tensor:
    """(B,C,h,w) as tokens (B, h/2·w/2, 4C)."""
    rows = latents.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # (B, C, h/2, 2, w/2, 2)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """What `pack` was given, of that height and width."""
    blocks = tokens.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (height // PATCH, width // PATCH))
    return blocks.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def places(rows: int, columns: int, device: torch.device) -> Tensor:
    """Row and column of each token, (rows·columns, 3) with 0 in front."""
    y = torch.arange(rows, device=device)[:, None].expand(rows, columns)
    x = torch.arange(columns, device=device)[None].expand(rows, columns)
    return torch.stack([torch.zeros_like(y), y, x], -1).flatten(0, 1).float()
