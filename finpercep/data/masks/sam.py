"""Segment Anything from checkpoints of `segment_anything`'s own format."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from torch import Tensor

from finpercep.data.masks.segments import SegmentKind, stack_segments
from finpercep.io.fingerprints import file_hash
from finpercep.io.reasons import one_line

__all__ = ["SamKind", "load_sam"]


class SamKind(SegmentKind):
    """Segments of `segment_anything`'s automatic generator, from a checkpoint of its own format.

    Args:
        path: e.g. sam_vit_b_01ec64.pth; the sizes are read from the weights.
        points_per_side: the grid of prompts.
        pred_iou_thresh, stability_score_thresh: SAM's own filters.
    """

    name = "sam"

    def __init__(
        self,
        path: str,
        *,
        device: str = "cpu",
        points_per_side: int,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
    ) -> None:
        try:
            from segment_anything import SamAutomaticMaskGenerator
        except ImportError as error:
            raise ImportError(f"sam: no segment_anything ({error}); pip install 'finpercep[sam]'") from error
        path = os.path.expanduser(path)
        self.fingerprint = f"{file_hash(path)[:16]}-{points_per_side}"
        self.generator = SamAutomaticMaskGenerator(
            load_sam(path).to(device),
            points_per_side=points_per_side,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
        )

    @torch.no_grad()
    def prepare(self, image: Tensor) -> Tensor:
        """Segments (N,H,W), bool, of an image uint8 (3,H,W)."""
        found = self.generator.generate(image.permute(1, 2, 0).contiguous().numpy())
        return stack_segments([record["segmentation"] for record in found], image)


def load_sam(path: str) -> Any:
    """A `segment_anything` model with the sizes that the checkpoint's tensors have.

    Raises:
        OSError: no such file.
        ValueError: not a SAM checkpoint.
    """
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        vit = "image_encoder."
        side, width = state[f"{vit}pos_embed"].shape[1], state[f"{vit}pos_embed"].shape[3]
        patch = state[f"{vit}patch_embed.proj.weight"].shape[-1]
        blocks = _count(state, vit + r"blocks\.(\d+)\.")
        reach = [state[f"{vit}blocks.{i}.attn.rel_pos_h"].shape for i in range(blocks)]
        everywhere = [i for i in range(blocks) if reach[i][0] == 2 * side - 1]
        windows = [(shape[0] + 1) // 2 for i, shape in enumerate(reach) if i not in everywhere]
        prompt = state["mask_decoder.iou_token.weight"].shape[1]
        decoder = "mask_decoder.transformer."
        model = Sam(
            image_encoder=ImageEncoderViT(
                depth=blocks,
                embed_dim=width,
                img_size=side * patch,
                mlp_ratio=state[f"{vit}blocks.0.mlp.lin1.weight"].shape[0] / width,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                num_heads=width // reach[0][1],
                patch_size=patch,
                qkv_bias=True,
                use_rel_pos=True,
                global_attn_indexes=everywhere,
                window_size=windows[0] if windows else 0,
                out_chans=prompt,
            ),
            prompt_encoder=PromptEncoder(
                embed_dim=prompt,
                image_embedding_size=(side, side),
                input_image_size=(side * patch, side * patch),
                mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
            ),
            mask_decoder=MaskDecoder(
                num_multimask_outputs=state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
                transformer=TwoWayTransformer(
                    depth=_count(state, decoder + r"layers\.(\d+)\."),
                    embedding_dim=prompt,
                    mlp_dim=state[f"{decoder}layers.0.mlp.lin1.weight"].shape[0],
                    num_heads=8,
                ),
                transformer_dim=prompt,
                iou_head_depth=_count(state, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
                iou_head_hidden_dim=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
            ),
            pixel_mean=[123.675, 116.28, 103.53],
            pixel_std=[58.395, 57.12, 57.375],
        )
        model.load_state_dict(state)
    except OSError:
        raise
    except Exception as error:  # missing keys, other shapes, foreign files
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise ValueError(f"{path}: expected a segment_anything checkpoint; reading it gave {reason}") from error
    return model.eval()


def _count(state: dict[str, Tensor], pattern: str) -> int:
    numbers = [int(match[1]) for match in (re.match(pattern, name) for name in state) if match]
    return max(numbers) + 1
