"""LR consistency by value, and its gradient."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finpercep.rewards import LRConsistency


def test_value(images):
    small = F.interpolate(images, (10, 5), mode="bicubic", antialias=True).clamp(0, 1)
    reward = LRConsistency(tolerance=0.02)
    torch.testing.assert_close(reward(images, lr=small).score, torch.ones(3))
    off = reward(images.double(), lr=(small + 0.01).double()).score
    torch.testing.assert_close(off, torch.full((3,), math.exp(-0.5), dtype=torch.float64), atol=1e-5, rtol=0)
    assert reward(images, lr=small).map is None
    assert reward(images, lr=small.double()).score.dtype == torch.float32
    edge = (torch.arange(20) > 8).float().view(1, 1, 20, 1).expand(1, 3, 20, 10)
    whole = F.interpolate(edge, (10, 5), mode="bicubic", antialias=True)
    assert whole.min() < 0  # it overshoots, as no image does
    assert reward(edge, lr=whole.clamp(0, 1)).score.tolist() == pytest.approx([1])
    assert torch.equal(LRConsistency()(images, lr=small + 0.01).score, reward(images, lr=small + 0.01).score)
    assert torch.equal(reward(images.half(), lr=small).score, reward(images.half().float(), lr=small).score)


def test_what_no_file_holds_moves_no_score(images):
    small = F.interpolate(images, (10, 5), mode="bicubic", antialias=True).clamp(0, 1)
    lr = (small + 2 / 255).clamp(0, 1)  # a result a little brighter would be nearer
    reward = LRConsistency()
    between = (images + 0.4 / 255).clamp(0, 1)
    assert torch.equal(reward(between, lr=lr).score, reward(images, lr=lr).score)
    brighter = (images + 1 / 255).clamp(0, 1)
    assert (reward(brighter, lr=lr).score > reward(images, lr=lr).score + 0.05).all()


def test_gradient_moves_the_result_towards_its_source(images):
    small = F.interpolate(images, (10, 5), mode="bicubic", antialias=True).clamp(0, 1)
    x = (images + 0.1).clamp(0, 1).requires_grad_()
    reward = LRConsistency()
    before = reward(x, lr=small).score
    before.sum().backward()
    after = reward(x.detach() + 0.001 * x.grad.sign(), lr=small).score
    assert (after > before).all()


def test_errors(images):
    with pytest.raises(ValueError, match="lr: expected the low-resolution images"):
        LRConsistency()(images)
    for shape in ((2, 3, 16, 4), (2, 3, 5, 8)):
        with pytest.raises(ValueError, match=r"lr: expected the proportions of the results \(2, 3, 32, 32\), got"):
            LRConsistency()(torch.rand(2, 3, 32, 32), lr=torch.rand(shape))
    LRConsistency()(torch.rand(2, 3, 33, 47), lr=torch.rand(2, 3, 9, 12))  # sides that were rounded
    with pytest.raises(ValueError, match=r"lr: expected \(B,3,h,w\), not larger than"):
        LRConsistency()(torch.rand(2, 3, 32, 32), lr=torch.rand(2, 3, 0, 8))
    with pytest.raises(ValueError, match=r"lr: expected .* got"):
        LRConsistency()(images, lr=torch.zeros(2, 3, 5, 5))
    with pytest.raises(ValueError, match="not larger"):
        LRConsistency()(images, lr=torch.zeros(3, 3, 40, 5))
    small = torch.zeros(3, 3, 10, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^lr: expected floats in \[0, 1\], got torch.uint8$"):
        LRConsistency()(images, lr=small)
    with pytest.raises(ValueError, match=r"^images: expected floats in \[0, 1\], got torch.uint8$"):
        LRConsistency()((images * 255).to(torch.uint8), lr=small.float())
    with pytest.raises(ValueError, match="tolerance"):
        LRConsistency(0)


def test_numbers_of_one_value_are_one_reward():
    assert LRConsistency(1).fingerprint == LRConsistency(1.0).fingerprint
    assert LRConsistency(np.float32(0.5)).fingerprint == LRConsistency(0.5).fingerprint


@pytest.mark.compile
def test_its_gradient_compiles_for_any_number_of_rows():
    images, lr = torch.rand(3, 3, 16, 20), torch.rand(3, 3, 4, 5)
    reward, compiled = LRConsistency(), LRConsistency()
    compiled.compile(dynamic=True, backend="aot_eager")
    for rows in (3, 2):
        found, expected = (gradient(one, images[:rows], lr[:rows]) for one in (compiled, reward))
        torch.testing.assert_close(found, expected)


def gradient(reward, images, lr):
    images = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(reward(images, lr=lr).score.sum(), images)
    return found
