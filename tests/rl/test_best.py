"""The best measurement, by a measure of which more or less is better."""

from __future__ import annotations

import pytest
import torch

from finpercep.rl.best import Best


def test_better_is_more_or_less_by_the_measure():
    better = {"psnr": 1, "severity": -1}
    means = (0.5, 0.5, 0.7, 0.3, 0.6)
    expected = {"psnr": [True, False, True, False, False], "severity": [True, False, False, True, False]}
    for name, improved in expected.items():
        best = Best(name, better)
        assert [best.improved({name: torch.tensor([mean - 0.1, mean + 0.1])}) for mean in means] == improved


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_not_finite_is_never_the_best(sign):
    best = Best("psnr", {"psnr": sign})
    means = (float("nan"), 0.5, float("nan"), float("inf"), -float("inf"), 0.5 + 0.1 * sign)
    assert [best.improved({"psnr": torch.tensor([mean])}) for mean in means] == [False, True, False, False, False, True]
