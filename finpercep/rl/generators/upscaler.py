"""`StableDiffusionUpscalePipeline`: a UNet that predicts ε, v or x0, in flow coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finpercep.data.randomness import seeded
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import Steps, from_flow, placed, preserving, scheduler_steps, velocity
from finpercep.rl.generators.config import GeneratorConfig
from finpercep.rl.generators.latent import Condition, LatentGenerator

WHOLE = 1e-3
"""A timestep this close to a whole one is that one: s in single precision does not say it more exactly."""

SCHEDULERS = ("DDIMScheduler", "DDPMScheduler")
"""Their configurations say all that DDIM's steps need; those of others leave out whether predictions are clipped."""


class UpscalerGenerator(LatentGenerator):
    """The network is given latents beside the low-resolution image, to which noise of a known level was added.

    That noise is a function of the image's id: rollouts and training see the same.
    """

    part = "unet"
    pipeline_class = "StableDiffusionUpscalePipeline"
    levels: Tensor

    def __init__(self, pipeline: Any, texts: Mapping[str, Tensor], config: GeneratorConfig, fingerprint: str) -> None:
        super().__init__(pipeline, texts, config, fingerprint)
        from diffusers import DDIMScheduler

        if (given := type(pipeline.scheduler).__name__) not in SCHEDULERS:
            raise ValueError(
                f"scheduler: expected {' or '.join(SCHEDULERS)} for {self.pipeline_class}, got {given}; where the UNet "
                "predicts noise, v or x0, save the pipeline with the DDIMScheduler that it was trained for"
            )
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)  # whose step is Euler's here
        self.kind = self.scheduler.config.prediction_type
        self.scale, self.channels = self.stride, self.vae.config.latent_channels
        if not 0 <= config.noise_level <= pipeline.config.max_noise_level:
            raise ValueError(f"noise_level: expected 0 to {pipeline.config.max_noise_level}, got {config.noise_level}")
        signal = pipeline.low_res_scheduler.alphas_cumprod.double()[config.noise_level]
        self.lr_alpha, self.lr_sigma = float(signal.sqrt()), float((1 - signal).sqrt())
        signal = self.scheduler.alphas_cumprod.double()
        alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
        self.register_buffer("levels", sigma / (alpha + sigma), persistent=False)  # s of each timestep, rising
        self.multiple = 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    def told(self, batch: Batch) -> Condition:
        """The noisy low-resolution image in [-1, 1]."""
        lr = batch.lr.float() * 2 - 1
        self.check_sides(lr, self.multiple)
        draws = [torch.randn(lr.shape[1:], generator=seeded(0, "noise on lr", image)) for image in batch.ids.tolist()]
        return {"image": self.lr_alpha * lr + self.lr_sigma * placed(torch.stack(draws), lr)}

    def timesteps(self, s: Tensor) -> Tensor:
        """What the network is told for levels s (B,): between two timesteps in proportion, beyond the ends the ends."""
        s = s.to(self.levels)
        above = torch.searchsorted(self.levels, s).clamp(1, len(self.levels) - 1)
        low, high = self.levels[above - 1], self.levels[above]
        t = above - 1 + ((s - low) / (high - low)).clamp(0, 1)
        whole = t.round()
        return torch.where((t - whole).abs() < WHOLE, whole, t).float()

    def predict(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        z = from_flow(x, s)
        prediction = self.denoiser(
            torch.cat([z, condition["image"]], 1),
            self.timesteps(s),
            encoder_hidden_states=condition["prompt_embeds"],
            class_labels=torch.full((len(x),), self.options.noise_level, device=x.device),
        ).sample
        return velocity(prediction.float(), z, *preserving(s), self.kind)

    def steps(self, count: int) -> Steps:
        """DDIM's; the last one ends at s = 0, whatever `set_alpha_to_one` says: what is decoded is then x̂0 itself."""
        steps = scheduler_steps(self.scheduler, count)
        return Steps((*steps.s[:-1], 0.0), steps.timesteps)
