"""Calibration of a score: what photos and results get, and that it is folded exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from finpercep.data import Scene
from finpercep.models import RewardModel, RewardOutput
from finpercep.training import ScoreCalibration, apply_score_calibration, fit_score_calibration


class Brightness(nn.Module):
    """The mean of an image as its score."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def score(self, images: list[Tensor]) -> RewardOutput:
        return RewardOutput(torch.stack([image.float().mean() / 255 for image in images]), None)


def scenes(folder: Path, photos: list[int], results: list[int]) -> list[Scene]:
    """Each with a photo and a result of one gray."""
    found = []
    for i, (photo, result) in enumerate(zip(photos, results, strict=True)):
        paths = {kind: folder / f"{i}_{kind}.png" for kind in ("gt", "sr")}
        for path, gray in zip(paths.values(), (photo, result), strict=True):
            Image.new("RGB", (32, 32), (gray,) * 3).save(path)
        found.append(Scene(str(i), paths["gt"], {"gray": paths["sr"]}))
    return found


def calibrated(score: float, found: ScoreCalibration) -> float:
    return float(torch.sigmoid(found.slope * torch.tensor(score, dtype=torch.float64).logit() + found.offset))


def test_photos_rise_and_results_stay(tmp_path: Path) -> None:
    photos, results = (
        [153, 170, 178, 186, 194, 200, 204, 208, 212, 216, 220],
        [51, 64, 76, 89, 64, 51, 76, 89, 64, 51, 76],
    )
    found = fit_score_calibration(Brightness(), scenes(tmp_path, photos, results))
    after = [calibrated(gray / 255, found) for gray in photos]
    assert sorted(after)[1] == pytest.approx(0.8, abs=1e-6)  # one of eleven lies below
    assert found.slope > 1
    assert found.photos == pytest.approx(sum(after) / 11, abs=1e-6)
    before = sum(results) / 11 / 255
    assert found.results == pytest.approx(before, abs=1e-6)
    assert sum(calibrated(gray / 255, found) for gray in results) / 11 == pytest.approx(before, abs=1e-6)


def test_at_least_the_share(tmp_path: Path) -> None:
    """Of twelve photos nine in ten are 10.8: eleven, not ten."""
    photos = [150, 160, 170, 180, 185, 190, 195, 200, 205, 210, 215, 220]
    found = fit_score_calibration(Brightness(), scenes(tmp_path, photos, [60] * 12))
    after = sorted(calibrated(gray / 255, found) for gray in photos)
    assert after[1] == pytest.approx(0.8, abs=1e-6)
    assert sum(score >= 0.8 - 1e-6 for score in after) == 11
    ten = fit_score_calibration(Brightness(), scenes(tmp_path, photos[:10], [60] * 10))
    after = sorted(calibrated(gray / 255, ten) for gray in photos[:10])
    assert after[1] == pytest.approx(0.8, abs=1e-6)  # nine of ten, though (1 - 0.9)·10 is a little below 1


def test_scores_of_0_and_1_have_logits(tmp_path: Path) -> None:
    found = fit_score_calibration(Brightness(), scenes(tmp_path, [255, 255], [0, 100]))
    assert 0 < found.slope < 8
    assert found.photos == pytest.approx(0.8, abs=1e-6)
    assert found.results == pytest.approx(50 / 255, abs=1e-3)


def test_what_cannot_be_fitted(tmp_path: Path) -> None:
    given = scenes(tmp_path, [60, 200], [100, 100])
    with pytest.raises(
        ValueError, match=r"^share: expected photos of which 1 score above most results, got 0.235 .* 0.392"
    ):
        fit_score_calibration(Brightness(), given, share=1)
    with pytest.raises(ValueError, match=r"^good: expected a number above 0 and below 1, got 1$"):
        fit_score_calibration(Brightness(), given, good=1)
    with pytest.raises(ValueError, match=r"^share: expected a number above 0 and at most 1, got 0$"):
        fit_score_calibration(Brightness(), given, share=0)
    with pytest.raises(
        ValueError, match=r"^good: expected more than the 0.392 that results score on average, got 0.3$"
    ):
        fit_score_calibration(Brightness(), given, good=0.3)
    for none in ([], [Scene("a", given[0].gt_path, {})]):
        with pytest.raises(ValueError, match=r"^scenes: expected scenes with results, got none$"):
            fit_score_calibration(Brightness(), none)


def test_folding_is_exact() -> None:
    torch.manual_seed(0)
    model = RewardModel({"type": "conv", "channels": [8, 16], "depths": [1, 1]}, {"width": 8}).eval()
    with torch.no_grad():
        image = torch.rand(4, 3, 40, 48)
        before = model(image)
        after = apply_score_calibration(model, ScoreCalibration(1.5, 0.25, 0, 0))(image)
    torch.testing.assert_close(after.score, torch.sigmoid(1.5 * before.score.logit() + 0.25), atol=1e-6, rtol=0)
    assert torch.equal(after.map, before.map)
