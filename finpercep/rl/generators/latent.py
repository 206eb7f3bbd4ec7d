"""What generators that are pipelines of diffusers share: texts, guidance, the VAE, adapters, files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finpercep.io.fingerprints import weights_fingerprint
from finpercep.io.reasons import one_line
from finpercep.rl.batch import Batch
from finpercep.rl.generators.adapters import adapters_off, add_adapters, save_adapters
from finpercep.rl.generators.base import GeneratorModule
from finpercep.rl.generators.config import GeneratorConfig

NEGATIVE = "negative_"
Condition = dict[str, Tensor]


class LatentGenerator(GeneratorModule):
    """A denoiser on the latents of a VAE, told a text and the low-resolution image.

    Args:
        pipeline: of diffusers, without its text encoders.
        texts: name -> (1, ...), embeddings of `prompt`, and under "negative_" + name those of `negative_prompt`.
        config: how it is trained and sampled.
        fingerprint: of the pipeline's files.
    """

    part: str
    """The name of what is trained in the pipeline: "unet" or "transformer"."""
    pipeline_class: str

    def __init__(self, pipeline: Any, texts: Mapping[str, Tensor], config: GeneratorConfig, fingerprint: str) -> None:
        super().__init__()
        self.options, self.base = config, fingerprint
        self.dtype = getattr(torch, config.dtype)
        self.denoiser = getattr(pipeline, self.part).requires_grad_(False)
        self.vae = pipeline.vae.float().requires_grad_(False)  # in half precision it overflows, or loses the last bits
        self.scheduler = pipeline.scheduler
        self.stride = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.texts = list(texts)
        for name, tensor in texts.items():
            self.register_buffer(f"text_{name}", tensor, persistent=False)
        if config.train == "lora":
            add_adapters(self.denoiser, config)
        else:
            self.denoiser.float().requires_grad_(True)
        if config.checkpointing:
            self.denoiser.enable_gradient_checkpointing()
            self.vae.enable_gradient_checkpointing()
        if config.decode != "whole":
            self.vae.enable_slicing() if config.decode == "sliced" else self.vae.enable_tiling()

    def predict(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """v of one forward pass, with what `told` gave, doubled where there is guidance."""
        raise NotImplementedError

    def told(self, batch: Batch) -> Condition:
        """What the denoiser is told of low-resolution images, (B, ...) each."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """The denoiser, and the decoder of the VAE."""
        return [self.denoiser, self.vae.decoder]

    @property
    def guided(self) -> bool:
        """Whether there is classifier-free guidance: two answers for each sample."""
        return self.options.guidance > 1

    def condition(self, batch: Batch) -> Condition:
        """Texts and low-resolution images; under guidance first those of the negative prompt, then the others."""
        with torch.no_grad():
            given = self.told(batch)
            texts = {name: self._text(name, batch) for name in self.texts if not name.startswith(NEGATIVE)}
            if not self.guided:
                return {**given, **texts}
            negative = {name: getattr(self, f"text_{NEGATIVE}{name}").expand_as(t) for name, t in texts.items()}
            return {
                **{name: torch.cat([tensor, tensor]) for name, tensor in given.items()},
                **{name: torch.cat([negative[name], tensor]) for name, tensor in texts.items()},
            }

    def _text(self, name: str, batch: Batch) -> Tensor:
        own = batch.extras.get(name)
        text: Tensor = getattr(self, f"text_{name}")
        return text.expand(len(batch), *text.shape[1:]) if own is None else own.to(text)

    def velocity(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """v (B,C,h,w), float32; guidance included."""
        s = torch.as_tensor(s, device=x.device).expand(len(x))
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if not self.guided:
                return self.predict(x, s, condition).float()
            negative, positive = self.predict(torch.cat([x, x]), torch.cat([s, s]), condition).float().chunk(2)
        return negative + self.options.guidance * (positive - negative)

    def keep_reference(self) -> None:
        """Under LoRA the reference is the model without its adapters; else a copy, as of any generator."""
        if self.options.train == "full":
            super().keep_reference()

    @torch.no_grad()
    def reference_velocity(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """The same as `velocity` by the model before any reinforcement learning."""
        if self.options.train == "full":
            return super().reference_velocity(x, s, condition)
        with adapters_off(self.denoiser):
            return self.velocity(x, s, condition)

    def encode(self, photo: Tensor, condition: object = None) -> Tensor:
        """Latents of photos (B,3,H,W) in [0, 1]: the mean of the VAE's distribution, shifted and scaled."""
        mean = self.vae.encode(photo.float() * 2 - 1).latent_dist.mode()
        return (mean - self._shift) * self.vae.config.scaling_factor

    def decode(self, x0: Tensor, condition: object = None) -> Tensor:
        """Images (B,3,H,W), float32 in [0, 1], of latents."""
        image = self.vae.decode(x0.float() / self.vae.config.scaling_factor + self._shift).sample
        return (image / 2 + 0.5).clamp(0, 1)

    @property
    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the pipeline's files, the options, and what is trained."""
        from dataclasses import asdict

        options = {k: v for k, v in asdict(self.options).items() if k not in ("cache", "checkpointing", "decode")}
        return weights_fingerprint([self.base, options], self.trained_state())

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Adapters as `pipe.load_lora_weights(folder)` of diffusers reads them, or the whole UNet or transformer.

        The latter lies in its own folder: `pipe.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")`.

        Raises:
            OSError: a full disk, no permission; names the path.
        """
        from safetensors import SafetensorError

        if self.options.train == "lora":
            save_adapters(self.denoiser, self.part, self.pipeline_class, self.options, folder, dtype)
        else:
            model = self.denoiser if dtype is None else _as_type(self.denoiser, dtype)
            place = Path(folder) / self.part
            try:
                model.save_pretrained(place)
            except SafetensorError as error:  # of a full disk
                raise OSError(f"{place}: expected to write the weights, got {one_line(error)}") from error

    def check_sides(self, lr: Tensor, multiple: int) -> None:
        """Raises ValueError where the sides are no multiple of what the network can halve."""
        if lr.shape[-2] % multiple or lr.shape[-1] % multiple:
            raise ValueError(
                f"lr: expected sides that are multiples of {multiple} for {self.pipeline_class}, got "
                f"{lr.shape[-2]}x{lr.shape[-1]}; choose another side of the crops"
            )


def _as_type(model: nn.Module, dtype: torch.dtype) -> Any:
    import copy

    return copy.deepcopy(model).to(dtype)
