"""Networks of a perceptual distance as feature extractors of the fault target."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.io.fingerprints import weights_fingerprint

__all__ = ["PERCEPTUAL_NETS", "PerceptualFeatures", "load_stlpips"]

PERCEPTUAL_NETS = ("alex", "vgg")


class PerceptualFeatures:
    """The five layers of ST-LPIPS's AlexNet or VGG16 (arXiv 2207.13686); the package brings the weights.

    Layers are brought to one grid of cells, as their mean over a cell, and to length 1 there, so that the cosine of
    what comes out is the mean of the layers' cosines. The distance's own weights of channels are not used.
    Shape: (B,3,H,W) in [0, 1] -> (B,1152 or 1472,ceil(H/stride),ceil(W/stride)).
    """

    def __init__(self, net: str, *, stride: int = 8, device: str = "cpu") -> None:
        if net not in PERCEPTUAL_NETS:
            raise ValueError(f"features: expected stlpips:{' or stlpips:'.join(PERCEPTUAL_NETS)}, got stlpips:{net}")
        self.name, self.stride, self.device = f"stlpips-{net}", stride, device
        self.model = load_stlpips(net, f"features: stlpips:{net}").to(device)
        self.fingerprint = weights_fingerprint([self.name, stride], self.model.state_dict())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        grid = (-(-images.shape[-2] // self.stride), -(-images.shape[-1] // self.stride))
        layers = self.model.net(self.model.scaling_layer(2 * images.to(self.device) - 1))
        return torch.cat([F.normalize(_on_grid(layer, grid), dim=1) for layer in layers], dim=1)


def _on_grid(layer: Tensor, grid: tuple[int, int]) -> Tensor:
    if layer.shape[-2] >= grid[0] and layer.shape[-1] >= grid[1]:
        return F.adaptive_avg_pool2d(layer, grid)
    return F.interpolate(layer, grid, mode="bilinear")


def load_stlpips(net: str, wanted: str) -> Any:
    """Shift-tolerant LPIPS on "alex" or "vgg", frozen, with the weights that its package brings.

    Raises:
        ImportError: the package is missing; names what wanted it, and the extra.
    """
    try:
        from stlpips_pytorch import stlpips
    except ImportError as error:
        raise ImportError(f"{wanted} needs stlpips-pytorch ({error}); pip install 'finpercep[stlpips]'") from error
    with torch.random.fork_rng(devices=[]):  # it initializes weights before it loads its own
        model = stlpips.LPIPS(net=net, variant="shift_tolerant", verbose=False)
    return model.requires_grad_(False)
