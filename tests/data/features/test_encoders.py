"""Feature extractors on small checkpoints in the real formats: DINOv3, DINOv2, CLIP, a reward model."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from finpercep.data.features.kinds import check_features, open_features


def dinov3():
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        patch_size=16,
        num_register_tokens=4,
    )
    return DINOv3ViTModel(config)


def dinov2():
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, patch_size=14, image_size=56
    )
    return Dinov2Model(config)


def clip():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        patch_size=8,
        image_size=32,
    )
    return CLIPVisionModel(config)


@pytest.mark.parametrize(("make", "patch"), [(dinov3, 16), (dinov2, 14), (clip, 8)])
def test_vit_features(make, patch, tmp_path):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "vit")
    features = open_features(f"vit:{tmp_path}/vit")
    images = torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    maps = features(images)
    assert maps.shape == (2, 32, -(-50 // patch), -(-70 // patch))
    assert maps.isfinite().all()
    # A change in one corner moves the features there most: the grid is row-major and has no special tokens in it.
    changed = images.clone()
    changed[:, :, : 2 * patch, : 2 * patch] = 0
    moved = (features(changed) - maps).square().sum(1)[0]
    assert moved[0, 0] > 2 * moved[-1, -1]
    assert len(features.fingerprint) == 16
    again = open_features(f"vit:{tmp_path}/vit")
    assert again.fingerprint == features.fingerprint
    assert torch.equal(again(images), maps)


def test_last_norm_and_saved_normalization(tmp_path):
    """CLIP's patch tokens leave through its own last norm; the saved mean and deviation are used."""
    model = clip().eval()
    model.save_pretrained(tmp_path / "vit")
    settings = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))
    images = torch.rand(1, 3, 32, 32)
    made = open_features(f"vit:{tmp_path}/vit")(images)
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        expected = tower.post_layernorm(model(images).last_hidden_state)[:, 1:]
    assert torch.allclose(made.flatten(2).transpose(1, 2), expected, atol=1e-5)


def test_fingerprint_is_that_of_the_weights(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        dinov2().save_pretrained(tmp_path / name)
    a, b = (open_features(f"vit:{tmp_path}/{name}").fingerprint for name in "ab")
    assert a != b


def test_reward_encoder(model_folder, small_model):
    features = open_features(f"reward:{model_folder}")
    maps = features(torch.rand(1, 3, 33, 41))
    assert maps.shape == (1, 16, -(-33 // 8), -(-41 // 8))
    assert features.fingerprint == small_model.fingerprint


def test_names(tmp_path):
    assert open_features("none") is None
    assert open_features("filters").name == "filters"
    for bad in ("dino", "vit", "reward:"):
        with pytest.raises(ValueError, match="features: expected filters, "):
            check_features(bad)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="expected a vision transformer"):
        open_features(f"vit:{tmp_path}")


@pytest.mark.parametrize("whole", [False, True])
def test_siglip_folders(whole, tmp_path):
    """The vision model alone, and the one that reads text, too: the same tokens, at any size."""
    from transformers import SiglipConfig, SiglipModel, SiglipVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = SiglipConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        text_config={**sizes, "vocab_size": 64, "max_position_embeddings": 8},
    )
    model = SiglipModel(config).eval()
    if not whole:
        tower = SiglipVisionModel(config.vision_config).eval()
        tower.load_state_dict({k: v for k, v in model.state_dict().items() if k in tower.state_dict()}, strict=False)
        model = tower
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 20, 40)
    found = open_features(f"vit:{tmp_path}")(images)
    assert found.shape == (2, 32, 3, 5)
    vision = SiglipVisionModel.from_pretrained(tmp_path).eval()
    padded = torch.nn.functional.pad(images, (0, 0, 0, 4), mode="replicate")
    with torch.no_grad():
        expected = vision((padded - 0.5) / 0.5, interpolate_pos_encoding=True).last_hidden_state
    assert torch.allclose(found, expected.transpose(1, 2).unflatten(2, (3, 5)), atol=1e-5)


@pytest.mark.parametrize(("net", "channels"), [("alex", 1152), ("vgg", 1472)])
def test_perceptual_features(net, channels, make_photo):
    """One vector a cell of 8 pixels, each of five layers of length 1; texture gone is far, a shifted photo near."""
    pytest.importorskip("stlpips_pytorch.stlpips", reason="ST-LPIPS is the extra stlpips")
    state = torch.get_rng_state()
    features = open_features(f"stlpips:{net}")
    assert torch.equal(state, torch.get_rng_state())
    photo = make_photo(60, 84, seed=0)[None]
    maps = features(photo)
    assert maps.shape == (1, channels, 8, 11)
    assert torch.allclose(maps.square().sum(1), torch.tensor(5.0), atol=1e-4)
    shifted, flat = photo.roll(1, -1), photo.mean((2, 3), keepdim=True).expand_as(photo)
    near, far = ((1 - F.cosine_similarity(maps, features(image))).mean() for image in (shifted, flat))
    assert near < far / 3
    assert features.name == f"stlpips-{net}"
    assert features.fingerprint == open_features(f"stlpips:{net}").fingerprint
    assert len(features.fingerprint) == 16


def test_perceptual_features_that_are_not_there(monkeypatch):
    with pytest.raises(ValueError, match="features: expected stlpips:alex or stlpips:vgg, got stlpips:squeeze"):
        open_features("stlpips:squeeze")
    monkeypatch.setitem(sys.modules, "stlpips_pytorch", None)
    with pytest.raises(ImportError, match=r"features: stlpips:alex needs stlpips-pytorch .*finpercep\[stlpips\]"):
        open_features("stlpips:alex")
