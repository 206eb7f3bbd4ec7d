"""Small random pipelines of diffusers in the layout that real ones have on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = ("<|startoftext|>", "<|endoftext|>", "a", "a</w>", "b", "b</w>")
VAE = {
    "block_out_channels": (8, 8, 8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def save_upscaler(folder: Path, prediction: str = "v_prediction") -> Path:
    """StableDiffusionUpscalePipeline, ×4."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=7,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=1000,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        **{**VAE, "block_out_channels": (8, 8, 16)}
        | {"down_block_types": VAE["down_block_types"][:3], "up_block_types": VAE["up_block_types"][:3]},
        latent_channels=4,
        scaling_factor=0.08333,
    )
    StableDiffusionUpscalePipeline(
        vae=vae,
        text_encoder=clip(folder),
        tokenizer=clip_tokenizer(folder),
        unet=unet,
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            prediction_type=prediction,
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=1,
        ),
        max_noise_level=350,
    ).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def save_sd3(folder: Path, *, dynamic: bool = False) -> Path:
    """StableDiffusion3ControlNetPipeline with three text encoders."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3ControlNetModel,
        SD3Transformer2DModel,
        StableDiffusion3ControlNetPipeline,
    )

    torch.manual_seed(0)
    sizes = {
        "sample_size": 32,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
        "out_channels": 4,
    }
    StableDiffusion3ControlNetPipeline(
        transformer=SD3Transformer2DModel(**sizes),
        controlnet=loud(SD3ControlNetModel(**{**sizes, "num_layers": 1})),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
        vae=AutoencoderKL(**VAE, latent_channels=4, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(folder, projection=True),
        tokenizer=clip_tokenizer(folder),
        text_encoder_2=clip(folder, projection=True),
        tokenizer_2=clip_tokenizer(folder),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(folder),
    ).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def save_flux(folder: Path, *, guidance: bool = False) -> Path:
    """FluxControlNetPipeline, with or without a guidance that the model is told."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxControlNetModel,
        FluxControlNetPipeline,
        FluxTransformer2DModel,
    )

    torch.manual_seed(0)
    sizes = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": guidance,
    }
    FluxControlNetPipeline(
        transformer=FluxTransformer2DModel(**sizes),
        controlnet=loud(FluxControlNetModel(**sizes)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=AutoencoderKL(**VAE, latent_channels=4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False),
        text_encoder=clip(folder),
        tokenizer=clip_tokenizer(folder),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(folder),
    ).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def loud(controlnet: torch.nn.Module) -> torch.nn.Module:
    """A new ControlNet says nothing: its last layers are 0. Let it speak."""
    for name, parameter in controlnet.named_parameters():
        if "controlnet_blocks" in name or "controlnet_single_blocks" in name or "controlnet_x_embedder" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return controlnet


def clip(folder: Path, *, projection: bool = False) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=32 if not projection else 16,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def clip_tokenizer(folder: Path) -> object:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def t5() -> torch.nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4))


def t5_tokenizer(folder: Path) -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("▁a", -2.0), ("a", -3.0), ("b", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=77)
