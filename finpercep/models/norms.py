"""Batch normalization while a model learns, folded into the convolutions when it is used.

Without it the small encoder learns its map several times more slowly; with it, a score would depend on the batch. So
training keeps the normalizations, and what is loaded for use has none: an image scores the same alone, in a batch or
as part of a tiled photo.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, norm: bool) -> nn.Sequential:
    """A convolution that keeps the size (at stride 1), and its normalization or an empty place for it.

    He initialization: without normalization, PyTorch's default lets the signal fade and the biases take over.
    """
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    # The average over some thirty batches: single ones are of few photos.
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, momentum=0.03) if norm else nn.Identity())


def scale_output(layer: nn.Sequential, factor: float) -> None:
    """Multiply what a `convolution` gives by `factor`."""
    conv, norm = layer
    scaled = norm if isinstance(norm, nn.BatchNorm2d) else conv
    assert isinstance(scaled, (nn.BatchNorm2d, nn.Conv2d))
    with torch.no_grad():
        scaled.weight.mul_(factor)


def freeze_norms(module: nn.Module) -> None:
    """Let the normalizations of a module in training use their running statistics from now on."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


def fold_norms(module: nn.Module) -> None:
    """Replace every `convolution` by the one convolution that gives what it gives in evaluation."""
    for part in list(module.modules()):
        if isinstance(part, nn.Sequential) and len(part) == 2 and isinstance(part[1], nn.BatchNorm2d):
            conv, norm = part[0].eval(), part[1].eval()
            assert isinstance(conv, nn.Conv2d)
            part[0], part[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
