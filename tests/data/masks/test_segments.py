"""Segment Anything through its own package and through transformers, on small checkpoints in the real formats."""

import pytest
import torch

from finpercep.data.masks.sam import SamKind, load_sam
from finpercep.data.masks.sam_hf import HFSamKind
from finpercep.data.randomness import seeded


def save_sam(path):
    """A small ViT-SAM: windowed and global blocks, relative positions, everything the published files have."""
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=2,
            embed_dim=16,
            img_size=128,
            mlp_ratio=4,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=[1],
            window_size=3,
            out_chans=32,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=4
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=24, num_heads=8),
            transformer_dim=32,
            iou_head_depth=3,
            iou_head_hidden_dim=16,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    torch.save(sam.state_dict(), path)
    return sam.eval()


def check_kind(kind, image):
    segments = kind.prepare(image)
    assert segments.dtype == torch.bool
    assert segments.shape[1:] == image.shape[1:]
    assert len(segments) > 0
    assert torch.equal(segments, kind.prepare(image))
    shares = segments.float().mean((1, 2))
    area = (float(shares.min()) * 0.99, 0.97)
    mask = kind.draw(segments, image, seeded(0), area)
    if mask is not None:
        assert area[0] <= mask.float().mean() <= area[1]
        assert any((segment & mask[0]).sum() == segment.sum() for segment in segments)
    return segments


def test_sam_checkpoint(tmp_path, photo_u8, monkeypatch):
    pytest.importorskip("segment_anything", reason="needs segment-anything")
    original = save_sam(tmp_path / "sam.pth")
    loaded = load_sam(str(tmp_path / "sam.pth"))
    pixels = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.image_encoder(pixels), original.image_encoder(pixels))
    # Weights at random give scores below SAM's thresholds, so these are lowered.
    kind = SamKind(str(tmp_path / "sam.pth"), points_per_side=3, pred_iou_thresh=-10.0, stability_score_thresh=-1.0)
    check_kind(kind, photo_u8)
    assert kind.fingerprint.endswith("-3")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SamKind("~/sam.pth", points_per_side=3).fingerprint == kind.fingerprint
    assert len(SamKind(str(tmp_path / "sam.pth"), points_per_side=2, pred_iou_thresh=1e9).prepare(photo_u8)) == 0


@pytest.mark.parametrize(("width", "heads", "layers"), [(768, 12, 12)])
def test_sizes_of_published_checkpoints_are_read_from_the_weights(width, heads, layers, tmp_path, monkeypatch):
    """The layout of vit_b, on the meta device: every size that `load_sam` derives is the published one."""
    sam = pytest.importorskip("segment_anything", reason="needs segment-anything")
    import segment_anything.modeling as modeling

    with torch.device("meta"):
        state = sam.sam_model_registry["vit_b"]().state_dict()
    built = {}

    def record(**options):
        built.update(options)
        raise RuntimeError("seen")

    monkeypatch.setattr(torch, "load", lambda *_, **__: state)
    monkeypatch.setattr(modeling, "ImageEncoderViT", record)
    with pytest.raises(ValueError, match="seen"):
        load_sam("vit_b.pth")
    wanted = {
        "depth": layers,
        "embed_dim": width,
        "img_size": 1024,
        "mlp_ratio": 4,
        "num_heads": heads,
        "patch_size": 16,
        "global_attn_indexes": [2, 5, 8, 11],
        "window_size": 14,
        "out_chans": 256,
    }
    assert {name: built[name] for name in wanted} == wanted


def test_not_a_sam_checkpoint(tmp_path):
    pytest.importorskip("segment_anything", reason="needs segment-anything")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth: expected a segment_anything checkpoint"):
        SamKind(str(tmp_path / "odd.pth"), points_per_side=2)
    with pytest.raises(FileNotFoundError):
        SamKind(str(tmp_path / "none.pth"), points_per_side=2)


def test_transformers_mask_generation(tmp_path, photo_u8):
    pytest.importorskip("torchvision", reason="transformers' mask generation needs torchvision")
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    torch.manual_seed(0)
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16,
            output_channels=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=128,
            patch_size=16,
            window_size=3,
            global_attn_indexes=[1],
            mlp_dim=24,
            num_pos_feats=16,
        ).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=32, image_size=128, patch_size=16, mask_input_channels=4
        ).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=32, mlp_dim=24, num_attention_heads=4, num_hidden_layers=2, iou_head_hidden_dim=16
        ).to_dict(),
    )
    SamModel(config).save_pretrained(tmp_path / "sam")
    SamImageProcessor(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128}).save_pretrained(
        tmp_path / "sam"
    )
    kind = HFSamKind(str(tmp_path / "sam"), points_per_side=3, pred_iou_thresh=-10.0, stability_score_thresh=-1.0)
    check_kind(kind, photo_u8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a mask generation model"):
        HFSamKind(str(tmp_path / "empty"), points_per_side=2)
