"""Further held-out measures: the values of ST-LPIPS' package, rewards by name, what is missing, and the alarm."""

from __future__ import annotations

import sys

import pytest
import torch

from finpercep.rl.batch import Batch
from finpercep.rl.held_out import HeldOut
from finpercep.rl.measures import load_measures
from finpercep.rl.monitors import Alarm
from finpercep.rl.photos import load_pairs
from tests.rl.toy import Red


def given(photo):
    return Batch(torch.nn.functional.avg_pool2d(photo, 4), torch.arange(len(photo)), photo)


def test_st_lpips(make_photo):
    """0 for the photo itself; what the package says; hardly more for a shift by a pixel, unlike for blur."""
    stlpips = pytest.importorskip("stlpips_pytorch.stlpips", reason="ST-LPIPS is the extra stlpips")
    state = torch.get_rng_state()
    measure = load_measures(["st-lpips"], "cpu")["st-lpips"]
    assert torch.equal(state, torch.get_rng_state())
    photo = torch.stack([make_photo(96, 96, seed=seed) for seed in range(2)])
    blurred = torch.nn.functional.interpolate(given(photo).lr, scale_factor=4, mode="bicubic").clamp(0, 1)
    shifted = photo.roll(1, -1)
    same, far, near = (measure.function(images, given(photo)) for images in (photo, blurred, shifted))
    assert same.tolist() == [0.0, 0.0]
    assert (near < far / 2).all()
    package = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    torch.testing.assert_close(far, package(2 * blurred - 1, 2 * photo - 1).detach().flatten())
    assert measure.sign == -1


def test_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "stlpips_pytorch", None)
    with pytest.raises(ImportError, match=r"monitors.metrics: st-lpips needs stlpips-pytorch .*finpercep\[stlpips\]"):
        load_measures(["st-lpips"], "cpu")
    with pytest.raises(ValueError, match="finpercep-tyni"):
        load_measures(["finpercep-tyni"], "cpu")


def test_a_mistyped_name():
    for name in ("st-lpip", "stlpips", "ST-LPIPS"):
        with pytest.raises(ValueError, match=rf"^monitors\.metrics: .* got '{name}'; did you mean st-lpips\?$"):
            load_measures([name], "cpu")


def plain():
    return Red()


def test_a_reward_by_name(photo_set):
    """Measured on what files hold, in batches, beside the usual figures."""
    measures = load_measures(["tests.rl.test_measures:plain"], "cpu")
    held = HeldOut(load_pairs([photo_set], "val", 4), 32, 4, 3, size=1)
    images = 0.9 * held.batch.photo
    values = held.measure(images, Red(), torch.device("cpu"), further=measures)
    assert torch.equal(values["tests.rl.test_measures:plain"], values["reward_avg"])


def test_the_alarm_looks_at_them():
    alarm = Alarm(1, {"st-lpips": -1})

    def values(reward, distance):
        return {"reward_avg": torch.tensor(reward), "st-lpips": torch.tensor(distance)}

    assert alarm.note("0.0", values([0.1, 0.2, 0.3], [0.3, 0.31, 0.32])) == []
    (found,) = alarm.note("0.0", values([0.2, 0.3, 0.41], [0.4, 0.41, 0.43]))
    assert "st-lpips went from 0.3100 to 0.4133" in found
