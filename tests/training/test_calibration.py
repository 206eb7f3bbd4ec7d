"""Calibration of a map: where its border is put, and that it is folded exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from finpercep.data import Scene
from finpercep.evaluation.trials import Trial
from finpercep.models import RewardModel, RewardOutput
from finpercep.training import calibration
from finpercep.training.calibration import MapCalibration, apply_calibration, fit_calibration


class Cautious(nn.Module):
    """Bright pixels are faults and get a logit of -2, dark ones -5, and a reddish one -1."""

    has_map = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> RewardOutput:
        bright, red = images[:, 1:2] > 0.5, images[:, :1] - images[:, 1:2] > 0.2
        logits = torch.where(bright, -2.0, torch.where(red, -1.0, -5.0))
        return RewardOutput(torch.zeros(len(images)), logits.sigmoid())


class Graded(Cautious):
    """Logits that rise by 12 with the brightness, from -9."""

    def forward(self, images: Tensor) -> RewardOutput:
        return RewardOutput(torch.zeros(len(images)), (12 * images[:, :1] - 9).sigmoid())


def scenes(folder: Path, reddish_rows: int) -> Iterator[Scene]:
    for name in "ab":
        photo = torch.full((48, 48, 3), 50, dtype=torch.uint8)
        photo[:reddish_rows, :, 0] = 150
        bright = torch.full((48, 48, 3), 220, dtype=torch.uint8)
        for kind, pixels in (("gt", photo), ("sr", bright)):
            Image.fromarray(pixels.numpy()).save(folder / f"{name}_{kind}.png")
        yield Scene(name, folder / f"{name}_gt.png", {"bright": folder / f"{name}_sr.png"})


def test_the_border_separates_faults(tmp_path: Path) -> None:
    found = fit_calibration(Cautious(), list(scenes(tmp_path, reddish_rows=0)))
    assert found.border == -2  # the darkest of those that mark the same
    assert found.iou == 1
    assert found.clean == pytest.approx(torch.sigmoid(torch.tensor(found.slope * -3.0)).item(), rel=1e-4)


def test_clean_photos_hold_the_border_up(tmp_path: Path) -> None:
    """A tenth of the photo looks worse than the faults: no border but one above both marks less."""
    given = list(scenes(tmp_path, reddish_rows=5))
    assert fit_calibration(Cautious(), given, clean=0.2).border == -2
    assert fit_calibration(Cautious(), given, clean=0.05).border > -1
    assert fit_calibration(Cautious(), list(scenes(tmp_path, reddish_rows=6)), clean=0.125).border == -2  # just so much
    assert fit_calibration(Cautious(), list(scenes(tmp_path, reddish_rows=1))).border > -1  # a 48th is too much


def test_the_slope_is_that_of_the_map_that_follows_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """M_gt is the map at a slope of 2 from a border of -2, from which on pixels were replaced."""
    logits = torch.full((8, 8), -9.0)
    logits[2:5, 1:7] = torch.tensor([-3.9, -2.9, -1.9, -0.9, 0.1, 1.1])
    image, target, mask = (logits + 9).expand(3, 8, 8) / 12, torch.sigmoid(2 * (logits + 2)), (logits > -2).float()
    trial = Trial("a", ["b"], torch.zeros(3, 8, 8), [image], [image], [target], [mask])
    monkeypatch.setattr(calibration, "iterate_trials", lambda scenes: iter([trial]))
    found = fit_calibration(Graded(), [])
    assert (found.border, found.slope, found.iou) == (-2, 2, 1)
    assert found.cc == pytest.approx(1)
    assert found.clean == pytest.approx(1 / (1 + math.exp(14)), rel=1e-4)


def test_a_map_of_nothing_but_0_and_1(tmp_path: Path) -> None:
    class Sure(Cautious):
        def forward(self, images: Tensor) -> RewardOutput:
            return RewardOutput(torch.zeros(len(images)), (images[:, :1] > 0.5).float())

    assert fit_calibration(Sure(), list(scenes(tmp_path, reddish_rows=0))).iou == 1


def test_a_model_in_training_is_seen_as_in_evaluation_and_stays_as_it_is(tmp_path: Path) -> None:
    given = list(scenes(tmp_path, reddish_rows=5))
    torch.manual_seed(0)
    model = RewardModel(
        {"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True}, {"width": 8, "norm": True}
    )
    expected = fit_calibration(model.eval(), given, clean=0.99)
    before = {name: value.clone() for name, value in model.train().state_dict().items()}
    assert fit_calibration(model, given, clean=0.99) == expected
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_no_map_and_no_border(tmp_path: Path) -> None:
    given = list(scenes(tmp_path, reddish_rows=0))
    base = RewardModel({"type": "conv", "channels": [8], "depths": [1]})
    with pytest.raises(ValueError, match=r"^model: expected one with a map, got RM_0$"):
        fit_calibration(base, given)
    with pytest.raises(ValueError, match=r"^model: expected one with a map, got RM_0$"):
        apply_calibration(base, MapCalibration(0, 1, 0, 0, 0))
    with pytest.raises(ValueError, match=r"^clean: expected a share that some border keeps to, got -1"):
        fit_calibration(Cautious(), given, clean=-1)


def test_folding_is_exact() -> None:
    torch.manual_seed(0)
    model = RewardModel({"type": "conv", "channels": [8, 16], "depths": [1, 1]}, {"width": 8}).eval()
    with torch.no_grad():
        model.decoder.conv2.weight.normal_(std=0.3)
        image = torch.rand(1, 3, 40, 48)
        before = model(image).map
        after = apply_calibration(model, MapCalibration(-1.5, 2.0, 0, 0, 0))(image).map
    torch.testing.assert_close(after, torch.sigmoid(2 * (before.logit() + 1.5)), atol=1e-5, rtol=0)
    assert after.std() > 0.01
