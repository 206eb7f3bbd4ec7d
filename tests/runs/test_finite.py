"""Updates that are taken back where a loss or a gradient is not finite, and are the optimizer's own where all are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from finpercep.runs import finite
from finpercep.runs.finite import FiniteGuard

SIZES = (4, 3, 9, 2, 2, 1)


def made():
    """Six parameters in two groups, one of them larger than a portion of 8, one without gradient; and AdamW."""
    draw = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(size, generator=draw)) for size in SIZES]
    groups = [{"params": parameters[:4]}, {"params": parameters[4:], "lr": 1e-2, "weight_decay": 0.5}]
    return parameters, torch.optim.AdamW(groups, lr=0.1)


def give_gradients(parameters, step):
    for number, parameter in enumerate(parameters):
        draw = torch.Generator().manual_seed(10 * step + number)
        parameter.grad = None if number == 3 else torch.randn(parameter.shape, generator=draw)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def kept(monkeypatch):
    """How many elements are kept at once; portions are of 8."""
    seen, restore = [], finite._restore_where

    def look(failed, parameters, before):
        seen.append(sum(old.numel() for old in before))
        restore(failed, parameters, before)

    monkeypatch.setattr(finite, "PORTION", 8)
    monkeypatch.setattr(finite, "_restore_where", look)
    return seen


def test_updates_are_those_of_the_optimizer(kept):
    """Weights, moments and groups, to the bit, though no more than a portion, or one parameter, is kept at once."""
    (plain, usual), (guarded, optimizer) = made(), made()
    guard, one = FiniteGuard(torch.device("cpu")), torch.tensor(1.0)
    for step in range(3):
        for parameters in (plain, guarded):
            give_gradients(parameters, step)
        usual.step()
        guard.step(optimizer, step, one, one)
    guard.check()
    assert same(plain, guarded)
    ours, theirs = optimizer.state_dict(), usual.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, state in ours["state"].items():
        assert same(state.values(), theirs["state"][number].values())
    assert kept == [7, 9, 2, 3] * 3


@pytest.mark.parametrize(("loss", "norm", "said"), [("nan", "1", "loss at step 1 is nan"), ("1", "inf", "norm of the")])
def test_what_is_not_finite_changes_no_weight_from_then_on(kept, loss, norm, said):
    parameters, optimizer = made()
    guard, one = FiniteGuard(torch.device("cpu")), torch.tensor(1.0)
    give_gradients(parameters, 0)
    guard.step(optimizer, 0, one, one)
    before = copy.deepcopy(parameters)
    give_gradients(parameters, 1)
    guard.step(optimizer, 1, torch.tensor(float(loss)), torch.tensor(float(norm)))
    give_gradients(parameters, 2)
    guard.step(optimizer, 2, one, one)
    assert same(parameters, before)
    with pytest.raises(FloatingPointError, match=f"^{said}"):
        guard.check()


def test_an_optimizer_that_fails_keeps_its_groups(kept, monkeypatch):
    parameters, optimizer = made()
    give_gradients(parameters, 0)
    monkeypatch.setattr(optimizer, "step", lambda: 1 / 0)
    one = torch.tensor(1.0)
    with pytest.raises(ZeroDivisionError):
        FiniteGuard(torch.device("cpu")).step(optimizer, 0, one, one)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]
