"""Sources: names, folders, built-ins, tiles; checkpoints in the real formats through spandrel and diffusers."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from finpercep.data.randomness import seeded
from finpercep.data.sources.kinds import open_source, parse_source, parse_sources
from finpercep.data.sources.protocol import Photo, Region, SourceInput
from finpercep.data.sources.tiles import run_tiled
from finpercep.io.images import ImageError
from tests.conftest import synthetic_photo


def given(height=64, width=48, scale=4, *, photo=None, seed=0):
    gt = (synthetic_photo(height, width, seed=seed) * 255).round().byte()
    lr = F.avg_pool2d(gt[None].float(), scale).round().byte()[0]
    region = Region(0, 0, height, width)
    return SourceInput(photo or Photo("p", None), (height, width), region, gt, lr, seeded(seed))


def open_one(text, **options):
    (spec,) = parse_source(text)
    return open_source(spec, **{"scale": 4, "tile": 256, "steps": 50, **options})


def test_names():
    assert parse_source("folder:my-model=results/*_out.png")[0] == ("folder", "my-model", "results/*_out.png")
    assert parse_source("spandrel:/w/RealESRGAN_x4plus.pth")[0][1:] == (
        "RealESRGAN_x4plus",
        "/w/RealESRGAN_x4plus.pth",
    )
    assert parse_source("diffusers:org/x4-upscaler")[0].name == "org_x4-upscaler"
    assert parse_source("diffusers:up=org/x4-upscaler")[0] == ("diffusers", "up", "org/x4-upscaler")
    assert next(s.name for s in parse_source("builtin:all")) == "bicubic"
    for bad in ("results", "folder:results", "builtin:magic", "spandrel:", "http:x=y"):
        with pytest.raises(ValueError, match="sr: expected"):
            parse_source(bad)
    with pytest.raises(ValueError, match=r"different names, got \['a'\]"):
        parse_sources(["folder:a=x", "folder:a=y"])
    with pytest.raises(ValueError, match="got none"):
        parse_sources([])


def test_fingerprints_of_sources_that_data_sets_hold_stay(tmp_path):
    """They are in the settings of data sets that are to go on."""
    assert open_one("builtin:grain").fingerprint == open_one("builtin:bicubic").fingerprint == "builtin-1"
    assert open_one(f"folder:m={tmp_path}").fingerprint == "files"


def test_folder_source_cuts_the_region_and_checks_the_size(tmp_path):
    def save(width, height):
        Image.fromarray(torch.arange(height * width).remainder(251).byte().view(height, width).numpy()).save(
            tmp_path / "r.png"
        )

    source = open_one(f"folder:m={tmp_path}")
    photo = Photo("p", tmp_path / "gt.png", {"m": tmp_path / "r.png"})
    region = Region(8, 4, 16, 20)
    request = SourceInput(photo, (43, 46), region, torch.zeros(3, 16, 20), None, seeded(0))
    save(46, 43)
    whole = source(request)
    assert whole.shape == (3, 16, 20)
    assert whole[0, 0, 0] == (8 * 46 + 4) % 251
    save(44, 40)  # the photo, cut to a multiple of 4 before it was made smaller
    assert source(request).shape == (3, 16, 20)
    for size in ((46, 20), (92, 86), (44, 50), (45, 42), (40, 40), (32, 40)):
        save(*size)
        with pytest.raises(ImageError, match=rf"r\.png: expected 46x43 like .*gt\.png, got {size[0]}x{size[1]}"):
            source(request)


@pytest.mark.parametrize("name", ["bicubic", "smooth", "compressed"])
def test_builtin_sources(name):
    request = given()
    made = open_one(f"builtin:{name}")(request)
    assert made.shape == request.gt.shape
    assert made.dtype == torch.uint8
    assert 0 < (made.float() - request.gt.float()).abs().mean() < 60
    assert torch.equal(made, open_one(f"builtin:{name}")(given()))


@pytest.mark.parametrize("size", [(40, 64), (33, 100), (16, 16)])
def test_tiles_of_a_local_model_are_the_whole(size):
    """A model that looks 2 pixels far: blending of overlapping tiles changes nothing."""
    weight = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(0)) / 75

    def model(image):
        blurred = F.conv2d(F.pad(image, [2] * 4, mode="replicate"), weight)
        return F.interpolate(blurred, scale_factor=2, mode="nearest")

    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    whole = model(image)
    tiled = run_tiled(model, image, scale=2, tile=24, overlap=8)
    assert tiled.shape == whole.shape
    inner = torch.ones_like(whole[:, :1])  # at a tile's own border its context ends; the blend weighs that least
    assert ((tiled - whole).abs() * inner).max() < 0.08
    assert (tiled - whole).abs().mean() < 0.002
    assert torch.equal(run_tiled(model, image, scale=2, tile=0), whole)


def rrdb_state(features=8, growth=32, blocks=1):
    """ESRGAN in Real-ESRGAN's format."""
    state = {}

    def conv(name, inside, outside):
        state[f"{name}.weight"] = 0.05 * torch.randn(outside, inside, 3, 3)
        state[f"{name}.bias"] = torch.zeros(outside)

    conv("conv_first", 3, features)
    for b in range(blocks):
        for r in (1, 2, 3):
            for c in range(5):
                out = growth if c < 4 else features
                conv(f"body.{b}.rdb{r}.conv{c + 1}", features + c * growth, out)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        conv(name, features, features)
    conv("conv_last", features, 3)
    return {"params_ema": state}


def compact_state(features=8, convs=2, scale=4):
    """SRVGGNetCompact in Real-ESRGAN's format."""
    state = {}
    for i in range(convs + 1):
        state[f"body.{2 * i}.weight"] = 0.1 * torch.randn(features, 3 if i == 0 else features, 3, 3)
        state[f"body.{2 * i}.bias"] = torch.zeros(features)
        state[f"body.{2 * i + 1}.weight"] = torch.full((features,), 0.2)
    last = 2 * (convs + 1)
    state[f"body.{last}.weight"] = 0.1 * torch.randn(3 * scale**2, features, 3, 3)
    state[f"body.{last}.bias"] = torch.zeros(3 * scale**2)
    return {"params": state}


def swinir_state():
    from spandrel.architectures.SwinIR import SwinIR

    model = SwinIR(
        img_size=16,
        embed_dim=12,
        depths=[2],
        num_heads=[2],
        window_size=4,
        mlp_ratio=2,
        upscale=4,
        upsampler="pixelshuffle",
        img_range=1.0,
        resi_connection="1conv",
    )
    return {"params": model.state_dict()}


@pytest.mark.parametrize(
    ("make", "architecture"),
    [(rrdb_state, "ESRGAN"), (compact_state, "RealESRGAN Compact"), (swinir_state, "SwinIR")],
)
def test_spandrel_checkpoints(make, architecture, tmp_path):
    pytest.importorskip("spandrel", reason="needs spandrel")
    torch.manual_seed(0)
    torch.save(make(), tmp_path / "model.pth")
    source = open_one(f"spandrel:{tmp_path}/model.pth")
    assert source.model.architecture.name == architecture
    assert (source.name, source.needs_lr, len(source.fingerprint)) == ("model", True, 16)
    request = given(72, 88)
    made = source(request)
    assert made.shape == request.gt.shape
    with torch.no_grad():
        expected = source.model(request.lr[None].float() / 255).clamp(0, 1)[0]
    assert torch.equal(made, (expected * 255).round().byte())
    assert torch.equal(made, open_one(f"spandrel:{tmp_path}/model.pth")(given(72, 88)))


def test_spandrel_from_safetensors_and_bad_files(tmp_path):
    pytest.importorskip("spandrel", reason="needs spandrel")
    from safetensors.torch import save_file

    save_file(compact_state()["params"], tmp_path / "c.safetensors")
    assert open_one(f"spandrel:{tmp_path}/c.safetensors").model.scale == 4
    torch.save(compact_state(scale=2), tmp_path / "x2.pth")
    with pytest.raises(ValueError, match=r"x2\.pth: expected a x4 model, got x2"):
        open_one(f"spandrel:{tmp_path}/x2.pth")
    torch.save({"params": {"layer.weight": torch.zeros(3)}}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth: expected a checkpoint of an architecture that spandrel knows"):
        open_one(f"spandrel:{tmp_path}/odd.pth")
    (tmp_path / "junk.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"junk\.pth: expected a checkpoint of weights"):
        open_one(f"spandrel:{tmp_path}/junk.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.pth: not found"):
        open_one(f"spandrel:{tmp_path}/none.pth")


def save_sd_upscaler(folder):
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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
        class_embed_type=None,
        use_linear_projection=True,
        only_cross_attention=(True, False),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=0.08333,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=6,
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=1,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    words = ("<|startoftext|>", "<|endoftext|>", "a", "a</w>", "b", "b</w>")
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    StableDiffusionUpscalePipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(prediction_type="v_prediction"),
        max_noise_level=350,
    ).save_pretrained(folder / "pipeline")


def save_ldm_upscaler(folder):
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=6,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )
    vqvae = VQModel(
        block_out_channels=(8, 8, 16),
        in_channels=3,
        out_channels=3,
        latent_channels=3,
        norm_num_groups=4,
        num_vq_embeddings=32,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    LDMSuperResolutionPipeline(vqvae=vqvae, unet=unet, scheduler=DDIMScheduler()).save_pretrained(folder / "pipeline")


@pytest.mark.parametrize("save", [save_sd_upscaler, save_ldm_upscaler])
def test_diffusers_pipelines(save, tmp_path):
    pytest.importorskip("diffusers", reason="needs diffusers")
    save(tmp_path)
    source = open_one(f"diffusers:up={tmp_path}/pipeline", steps=2)
    request = given(60, 72)  # 15 x 18: the network can halve neither side twice
    made = source(request)
    assert made.shape == request.gt.shape
    assert torch.equal(made, source(given(60, 72)))  # the generator alone decides the noise
    assert source.fingerprint.endswith("-2")


def test_diffusers_pipeline_of_another_kind(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
    unet = diffusers.UNet2DModel(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "p")
    with pytest.raises(ValueError, match=r"expected a StableDiffusionUpscalePipeline or LDMSuper.*got DDPMPipeline"):
        open_one(f"diffusers:{tmp_path}/p")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a diffusers pipeline"):
        open_one(f"diffusers:{tmp_path}/empty")


def save_autoencoder(kind, folder):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
    torch.manual_seed(0)
    if kind == "AutoencoderTiny":
        sides = {f"{part}_block_out_channels": (8, 8, 8) for part in ("encoder", "decoder")}
        counts = {f"num_{part}_blocks": (1, 1, 1) for part in ("encoder", "decoder")}
        model = diffusers.AutoencoderTiny(latent_channels=4, **sides, **counts)
    else:
        down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
        channels = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4}
        model = diffusers.AutoencoderKL(down_block_types=down, up_block_types=up, latent_channels=4, **channels)
    model.save_pretrained(folder)
    return model.eval()


def identity_codec():
    """An autoencoder whose latent is the image, in quarters of its own size and back."""

    class Codec:
        config = SimpleNamespace(latent_channels=3)

        def encode(self, image):
            return SimpleNamespace(latents=F.avg_pool2d(image, 4))

        def decode(self, latent):
            return SimpleNamespace(sample=F.interpolate(latent, scale_factor=4))

    return Codec()


@pytest.mark.parametrize("kind", ["AutoencoderTiny", "AutoencoderKL"])
def test_autoencoder(kind, tmp_path, monkeypatch):
    model = save_autoencoder(kind, tmp_path / "vae")  # where pipelines have it
    source = open_one(f"autoencoder:{tmp_path}")
    assert not source.needs_lr
    request = given(60, 72)  # neither is a multiple of 8
    made = source(request)
    assert made.shape == request.gt.shape
    assert torch.equal(made, source(given(60, 72)))  # the generator alone decides the noise
    monkeypatch.setattr("finpercep.data.sources.autoencoder.NOISE", (0.0, 0.0))
    photo = request.gt[None].float() / 127.5 - 1
    with torch.no_grad():
        there_and_back = model(photo).sample
    expected = ((there_and_back[0] + 1) / 2).clamp(0, 1).mul(255).round().byte()
    assert (source(given(60, 72)).int() - expected.int()).abs().max() <= 1
    assert not torch.equal(made, expected)


def test_noise_of_an_autoencoder_is_as_strong_where_tiles_overlap(tmp_path, monkeypatch):
    save_autoencoder("AutoencoderTiny", tmp_path)
    source = open_one(f"autoencoder:{tmp_path}", tile=16)  # of 64 pixels, 16 of which overlap
    monkeypatch.setattr("finpercep.data.sources.autoencoder.NOISE", (1.0, 1.0))
    monkeypatch.setattr(source, "model", identity_codec())
    noise = (source(given(256, 256)).float() - given(256, 256).gt.float()).abs().mean((0, 1))
    starts = range(48, 192, 48)
    overlap = torch.stack([noise[start : start + 16].mean() for start in starts]).mean().item()
    assert overlap == pytest.approx(noise.mean().item(), rel=0.1)


def test_autoencoder_of_another_kind(tmp_path):
    pytest.importorskip("diffusers", reason="needs diffusers")
    with pytest.raises(ValueError, match=r"expected diffusers' AutoencoderKL or AutoencoderTiny, or a pipeline .*json"):
        open_one(f"autoencoder:{tmp_path}")
    save_ldm_upscaler(tmp_path)
    vq = tmp_path / "pipeline" / "vqvae"
    with pytest.raises(ValueError, match=r"vqvae: expected .* or AutoencoderTiny, got VQModel"):
        open_one(f"autoencoder:{vq}")
    save_autoencoder("AutoencoderTiny", tmp_path / "cut")
    (tmp_path / "cut" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cut: expected .* or AutoencoderTiny, got "):
        open_one(f"autoencoder:{tmp_path}/cut")
