"""Score head: Eq. 7 of the supplement, then a 3-layer MLP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from finpercep import ops
from finpercep.models.precision import at_least_float32, without_autocast
from finpercep.ops.modulate import GATES, RESAMPLES


class ScoreHead(nn.Module):
    """S = sigmoid(MLP(mean(f_final · gate(Downsample(M))))).

    Args:
        channels: channels of the encoder's last feature.
        hidden: width of the MLP.
        gate: how the map weighs the feature, see `ops.modulate`. [open] The literal Eq. 7 ("degradation") sends every
            clean image to the same point, which contradicts L_align; "residual" keeps the base model's feature and
            adds what the map points at.
        resample: how the map is brought to the feature's grid.

    Raises:
        ValueError: unknown gate or resampling.
    """

    def __init__(self, channels: int, *, hidden: int = 64, gate: str = "residual", resample: str = "area") -> None:
        super().__init__()
        if gate not in GATES:
            raise ValueError(f"gate: expected one of {', '.join(GATES)}, got {gate!r}")
        if resample not in RESAMPLES:
            raise ValueError(f"resample: expected one of {', '.join(RESAMPLES)}, got {resample!r}")
        self.gate, self.resample = gate, resample
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )

    def pool(self, feature: Tensor, degradation: Tensor | None) -> Tensor:
        """Eq. 7, pooled: feature (B,C,h,w), map (B,1,H,W) or None (the base model RM_0) -> (B,C)."""
        tokens = feature.flatten(2).transpose(1, 2)  # [B, N, C]
        if degradation is None:
            return tokens.mean(1)
        grid = (feature.shape[-2], feature.shape[-1])
        return ops.modulate(tokens, degradation, grid, gate=self.gate, resample=self.resample, pool="mean")

    def regress(self, pooled: Tensor) -> Tensor:
        """Pooled feature (B,C) -> score (B,) in [0, 1].

        In float32 (float64 stays) whatever the model's type: in bfloat16 scores near 1 would be 0.004 apart.
        """
        dtype = at_least_float32(pooled.dtype)
        x = pooled.to(dtype)
        with without_autocast(pooled.device):
            for layer in self.mlp:
                if isinstance(layer, nn.Linear):
                    x = F.linear(x, layer.weight.to(dtype), layer.bias.to(dtype))
                else:
                    x = layer(x)
        return x.sigmoid().squeeze(-1)
