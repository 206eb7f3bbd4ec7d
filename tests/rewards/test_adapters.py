"""Scoring functions of other packages where gradients are on, as ReFL has them."""

from __future__ import annotations

import torch

from finpercep.rewards import FunctionReward


def test_functions_that_leave_torch_get_images_without_gradients():
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    output = FunctionReward(lambda images, *_: images.numpy().mean((1, 2, 3)), "f")(images)
    torch.testing.assert_close(output.score, images.detach().mean((1, 2, 3)))
    assert not output.score.requires_grad


def test_functions_of_torch_keep_their_gradients():
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    FunctionReward(lambda images, *_: images.mean((1, 2, 3)), "f")(images).score.sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 1 / 48))
