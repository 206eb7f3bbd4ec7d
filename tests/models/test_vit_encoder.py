"""Features of vision transformers: against `transformers` itself, at any size, precision and attention."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from finpercep.models.clip_files import load_vision_tower, vision_config
from finpercep.models.reward_model import RewardModel
from finpercep.models.vit_encoder import CLIP_MEAN, CLIP_STD, ViTEncoder

Photo = Callable[..., Tensor]
DINO = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def encoder_of(folder: Path, taps: list[int], **options: Any) -> ViTEncoder:
    encoder = ViTEncoder(vision_config(folder), taps, **options)
    load_vision_tower(encoder, folder)
    return encoder.eval()


def normalized(images: Tensor) -> Tensor:
    return (images - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens[:, 1:].reshape(len(tokens), height, width, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 112), (96, 16)])
def test_matches_hidden_states_of_transformers(clip_b16: Path, make_photo: Photo, height: int, width: int) -> None:
    from transformers import CLIPModel

    images = torch.stack([make_photo(height, width, seed) for seed in (1, 2)])
    tower = CLIPModel.from_pretrained(clip_b16).eval().vision_model
    encoder = encoder_of(clip_b16, [3, 6, 9, 12])
    with torch.no_grad():
        hidden = tower(normalized(images), interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
        expected = [hidden[3], hidden[6], hidden[9], tower.post_layernorm(hidden[12])]
        features = encoder(images)
    assert len(features) == 4
    for feature, tokens in zip(features, expected, strict=True):
        want = as_map(tokens, height // 16, width // 16)
        assert feature.shape == want.shape == (2, 32, height // 16, width // 16)
        assert (feature - want).abs().max() <= 1e-5


def test_matches_without_interpolation_at_the_trained_size(clip_l14: Path, make_photo: Photo) -> None:
    from transformers import CLIPModel

    images = make_photo(56, 56)[None]
    tower = CLIPModel.from_pretrained(clip_l14).eval().vision_model
    with torch.no_grad():
        hidden = tower(normalized(images), output_hidden_states=True).hidden_states
        features = encoder_of(clip_l14, [6, 12, 18, 24])(images)
    for feature, tokens in zip(features[:3], (hidden[6], hidden[12], hidden[18]), strict=True):
        assert (feature - as_map(tokens, 4, 4)).abs().max() <= 1e-5


def test_dinov2_comes_from_the_same_code(make_photo: Photo) -> None:
    from transformers import Dinov2Config, Dinov2Model

    encoder = ViTEncoder(DINO, [1, 3]).eval()
    model = Dinov2Model(Dinov2Config(**DINO)).eval()
    model.embeddings.load_state_dict(encoder.embeddings.state_dict())
    model.encoder.layer.load_state_dict(encoder.layers.state_dict())
    images = make_photo(42, 70)[None]
    with torch.no_grad():
        out = model(normalized(images), output_hidden_states=True)
        first, last = encoder(images)
    assert (first - as_map(out.hidden_states[1], 3, 5)).abs().max() <= 1e-5
    assert (last - as_map(out.last_hidden_state, 3, 5)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("kind", "norm", "extra_tokens"),
    [
        ("siglip_vision_model", "post_layernorm", 0),
        ("dinov2", "layernorm", 1),
        ("dinov2_with_registers", "layernorm", 1 + 3),
        ("dinov3_vit", "norm", 1 + 3),
        ("vit", "layernorm", 1),
        ("deit", "layernorm", 1 + 1),
        ("ijepa", "layernorm", 0),
    ],
)
@torch.no_grad()
def test_every_model_type_gives_the_hidden_states_of_transformers(
    make_photo: Photo, kind: str, norm: str, extra_tokens: int
) -> None:
    """At the trained size and at another; CLIP has its own tests."""
    from transformers import AutoConfig, AutoModel

    config = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "num_register_tokens": 3,
    }
    torch.manual_seed(0)
    model: Any = AutoModel.from_config(AutoConfig.for_model(kind, **config)).eval()
    tower = getattr(model, "vision_model", model)
    for parameter in tower.parameters():  # norms and biases start as ones and zeros: a mix-up would not show
        parameter.add_(0.1 * torch.randn_like(parameter))
    (layers,) = (part for part in tower.modules() if isinstance(part, nn.ModuleList))
    encoder = ViTEncoder({"model_type": kind, **config}, [1, 2, 3]).eval()
    assert (encoder.stride, encoder.channels) == (8, [32] * 3)
    encoder.embeddings.load_state_dict(tower.embeddings.state_dict())
    encoder.layers.load_state_dict(layers.state_dict())
    encoder.post_norm.load_state_dict(getattr(tower, norm).state_dict())
    on_request = {} if kind.startswith("dino") else {"interpolate_pos_encoding": True}
    for height, width in ((32, 32), (24, 56)):
        images = torch.stack([make_photo(height, width, seed) for seed in (1, 2)])
        out = model(normalized(images), output_hidden_states=True, **on_request)
        expected = [*out.hidden_states[1:3], out.last_hidden_state]
        for feature, tokens in zip(encoder(images), expected, strict=True):
            assert tokens.shape[1] == extra_tokens + height * width // 64
            want = tokens[:, extra_tokens:].transpose(1, 2).unflatten(2, (height // 8, width // 8))
            assert (feature - want).abs().max() <= 1e-5
            assert want.std() > 0.1


@pytest.mark.parametrize("kind", ["dinov3_vit", "vit", "siglip_vision_model"])
def test_a_reward_model_around_other_transformers(make_photo: Photo, kind: str, tmp_path: Path) -> None:
    config = {
        "model_type": kind,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    built = RewardModel({"type": "vit", "config": config, "taps": [1, 2]}, {"width": 8}).eval()
    built.save_pretrained(tmp_path)
    images = make_photo(33, 48)[None].requires_grad_(True)
    out, again = built(images), RewardModel.from_pretrained(tmp_path)(images)
    assert torch.equal(out.score, again.score)
    assert torch.equal(out.map, again.map)
    out.score.sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).float().mean() > 0.99
    assert torch.equal(built.train()(images).score, out.score)  # no random positions
    if kind == "dinov3_vit":  # the only one with code of its own
        compiled = torch.compile(built, fullgraph=True, backend="aot_eager")
        assert (compiled(images).map - out.map).abs().max() < 1e-5


@pytest.mark.parametrize(
    "kind", ["beit", "vit_mae", "siglip2_vision_model", "sam_vision_model", "swin", "clip", "bert", "no-such"]
)
def test_other_model_types_are_one_error(tmp_path: Path, kind: str) -> None:
    config = {"type": "vit", "config": {"model_type": kind}, "taps": [12]}
    message = (
        "encoder: expected one of the model types clip_vision_model, siglip_vision_model, dinov2, "
        f"dinov2_with_registers, dinov3_vit, vit, deit, ijepa, got {kind!r}$"
    )
    with pytest.raises(ValueError, match=f"^{message}"):
        RewardModel(config)
    (tmp_path / "config.json").write_text(json.dumps({"encoder": config}))
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        RewardModel.from_pretrained(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: config.json does not describe a reward model: ")


def test_layers_after_the_last_tap_do_not_exist(clip_b16: Path, make_photo: Photo) -> None:
    images = make_photo(32, 32)[None]
    short = encoder_of(clip_b16, [2, 5])
    assert len(short.layers) == 5
    assert isinstance(short.post_norm, nn.Identity)  # the final norm belongs to the last layer only
    long = encoder_of(clip_b16, [2, 5, 12])
    assert len(long.layers) == 12
    with torch.no_grad():
        for a, b in zip(short(images), long(images)[:2], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("taps", "upsampling"), [([12], [1]), ([6, 12], [1, 1]), ([3, 6, 9, 12], [4, 2, 1, 1])])
def test_pyramid(clip_b16: Path, taps: list[int], upsampling: list[int]) -> None:
    encoder = encoder_of(clip_b16, taps)
    assert encoder.upsampling == upsampling
    assert encoder.channels == [32] * len(taps)
    assert (encoder.stride, encoder.radius) == (16, 64)


# ---------------------------------------------------------------------------------------------- the real checkpoint


def vit_l_14_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the vision tower in openai/clip-vit-large-patch14's model.safetensors."""
    width, inner = 1024, 4096
    layout: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "embeddings.position_embedding.weight": (257, width),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        layout |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for i in range(24):
        layer = f"encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layout |= {
                f"{layer}self_attn.{name}.weight": (width, width),
                f"{layer}self_attn.{name}.bias": (width,),
            }
        for name in ("layer_norm1", "layer_norm2"):
            layout |= {f"{layer}{name}.weight": (width,), f"{layer}{name}.bias": (width,)}
        layout |= {
            f"{layer}mlp.fc1.weight": (inner, width),
            f"{layer}mlp.fc1.bias": (inner,),
            f"{layer}mlp.fc2.weight": (width, inner),
            f"{layer}mlp.fc2.bias": (width,),
        }
    return {f"vision_model.{name}": shape for name, shape in layout.items()}


def test_the_layout_of_the_real_vit_l_14() -> None:
    from transformers import CLIPConfig, CLIPModel

    from finpercep.models.clip_files import _encoder_name

    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    }
    layout = vit_l_14_layout()
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig(vision_config=vision)).state_dict()
        encoder = ViTEncoder({"model_type": "clip_vision_model", **vision}, [6, 12, 18, 24])
    assert {k: tuple(v.shape) for k, v in theirs.items() if k.startswith("vision_model.")} == layout
    assert {_encoder_name(name): shape for name, shape in layout.items()} == {
        k: tuple(v.shape) for k, v in encoder.state_dict().items()
    }
    assert sum(p.numel() for p in encoder.parameters()) == 303_179_776
    assert (encoder.stride, encoder.channels) == (14, [1024] * 4)


# ------------------------------------------------------------------------------------------------------- behavior


@pytest.fixture(scope="module")
def model(clip_b16: Path) -> RewardModel:
    torch.manual_seed(1)
    built = RewardModel({"type": "vit", "config": vision_config(clip_b16), "taps": [1, 2]}, {"width": "light"})
    load_vision_tower(built.encoder, clip_b16)
    assert built.decoder is not None
    with torch.no_grad():  # a new decoder's map hardly moves
        built.decoder.conv2.weight.mul_(20)
    return built.eval()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 50), (16, 16), (65, 31)])
def test_any_size(model: RewardModel, make_photo: Photo, height: int, width: int) -> None:
    photo = make_photo(height, width)
    out = model(photo[None])
    assert out.score.shape == (1,)
    assert out.map.shape == (1, 1, height, width)
    padded = F.pad(photo[None], (0, -width % 16, 0, -height % 16), mode="replicate")
    assert torch.allclose(model(padded).map[..., :height, :width], out.map)


def test_an_empty_batch(model: RewardModel) -> None:
    out = model(torch.zeros(0, 3, 20, 33))
    assert (tuple(out.score.shape), tuple(out.map.shape)) == ((0,), (0, 1, 20, 33))


@torch.no_grad()
def test_alone_as_in_a_batch(model: RewardModel, make_photo: Photo) -> None:
    """In double precision: in single, products of other sizes round differently by about 1e-6."""
    images = torch.stack([make_photo(48, 40, seed) for seed in range(5)]).double()
    double = copy.deepcopy(model).double()
    together = double(images)
    for i in range(5):
        alone = double(images[i : i + 1])
        assert (alone.score - together.score[i]).abs().max() <= 1e-12
        assert (alone.map - together.map[i]).abs().max() <= 1e-12
    assert together.score.std() > 1e-5  # the photos do differ


def test_gradient_reaches_every_pixel(model: RewardModel, make_photo: Photo) -> None:
    for part in ("score", "map"):
        images = make_photo(37, 50)[None].requires_grad_(True)
        getattr(model(images), part).sum().backward()
        assert images.grad is not None
        assert images.grad.isfinite().all()
        assert (images.grad != 0).float().mean() > 0.99


def test_directional_derivative_in_double(model: RewardModel, make_photo: Photo) -> None:
    import copy

    double = copy.deepcopy(model).double()
    images = make_photo(20, 33)[None].double().requires_grad_(True)
    out = double(images)
    assert out.score.dtype == out.map.dtype == torch.float64
    assert (out.score - model(images.float()).score).abs().max() < 1e-5
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(out.score.sum() + out.map.mean(), images)
    with torch.no_grad():
        up, down = double(images + 1e-5 * direction), double(images - 1e-5 * direction)
        slope = (up.score.sum() + up.map.mean() - down.score.sum() - down.map.mean()) / 2e-5
    assert torch.isclose((gradient * direction).sum(), slope, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_low_precision(model: RewardModel, make_photo: Photo, dtype: torch.dtype, tolerance: float) -> None:
    import copy

    images = make_photo(40, 72)[None]
    low = copy.deepcopy(model).to(dtype)(images.to(dtype))
    full = model(images)
    assert (low.score.dtype, low.map.dtype) == (torch.float32, dtype)
    assert (low.score - full.score).abs().max() < tolerance
    assert (low.map - full.map).abs().max() < tolerance


def test_compiles_without_a_break(model: RewardModel, make_photo: Photo) -> None:
    """Graphs of forward and backward; code generation, which takes long, is tested on the small model."""
    images = torch.stack([make_photo(33, 48, seed) for seed in (1, 2)])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, gradients = [], []
    for run in (model, compiled):
        x = images.clone().requires_grad_(True)
        out = run(x)
        (out.score.sum() + out.map.mean()).backward()
        found.append(out)
        gradients.append(x.grad)
    assert (found[0].score - found[1].score).abs().max() < 1e-5
    assert (found[0].map - found[1].map).abs().max() < 1e-5
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------ attention


@torch.no_grad()
def test_attention_implementations_agree(clip_b16: Path, make_photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    """xformers is replaced by its definition, [B, N, heads, D] -> the same, so that the layout is what is tested."""
    calls = []

    def memory_efficient_attention(
        q: Tensor, k: Tensor, v: Tensor, attn_bias: object, p: float, scale: float
    ) -> Tensor:
        calls.append(q.shape)
        weights = torch.einsum("bqhd,bkhd->bhqk", q * scale, k).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v)

    for name in ("xformers", "xformers.ops"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["xformers.ops"].memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    images = make_photo(32, 48)[None]
    sdpa = encoder_of(clip_b16, [1, 12])(images)
    for other in ("eager", "xformers"):
        for a, b in zip(sdpa, encoder_of(clip_b16, [1, 12], attn_implementation=other)(images), strict=True):
            assert (a - b).abs().max() < 1e-5
    assert calls == [(1, 7, 2, 16)] * 12


def test_missing_attention_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "model_type": "clip_vision_model",
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
    }
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(ImportError, match=r'finpercep\[xformers\]"$'):
        ViTEncoder(config, [1], attn_implementation="xformers")
    if importlib.util.find_spec("flash_attn") is None:
        with pytest.raises(ImportError, match=r"^encoder: .*[Ff]lash") as error:
            ViTEncoder(config, [1], attn_implementation="flash_attention_2")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^attn_implementation: expected one of sdpa, .* got 'flash'$"):
        ViTEncoder(config, [1], attn_implementation="flash")


@pytest.mark.parametrize("taps", [[], [0, 2], [2, 1], [1, 1], [1, 4], [1, 2.5, 3]])
def test_bad_taps(taps: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"^taps: expected increasing layer numbers from 1 to 3, got \("):
        ViTEncoder(DINO, taps)


def test_bad_configurations() -> None:
    with pytest.raises(ValueError, match=r'^config: expected .* "model_type", got'):
        ViTEncoder({"hidden_size": 32}, [1])
    with pytest.raises(ValueError, match=r"^encoder: transformers cannot build 'clip_vision_model'"):
        ViTEncoder({"model_type": "clip_vision_model", "hidden_size": 30, "num_attention_heads": 4}, [1])


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "num_attention_heads", "patch_size"])
@pytest.mark.parametrize("value", [-1, 0, 2.5])
def test_sizes_are_positive_integers(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected a positive integer, got {value}$"):
        ViTEncoder({**DINO, name: value}, [1])
