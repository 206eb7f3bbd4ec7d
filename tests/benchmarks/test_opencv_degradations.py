"""What the degradations are measured against does the same work: without noise, nearly the same pictures."""

import pytest
import torch

from finpercep.data.degradations.apply import degrade
from finpercep.data.degradations.config import DegradationConfig
from finpercep.data.degradations.draw import draw_parameters
from tests.conftest import synthetic_photo

pytest.importorskip("cv2", reason="needs opencv-python")
pytest.importorskip("scipy", reason="needs scipy")


def test_the_other_route_degrades_alike():
    from benchmarks.opencv_degradations import degrade_one, plain

    none, best = (0.0, 0.0), (100.0, 100.0)  # coarser JPEGs turn a rounding into a step of their tables
    config = DegradationConfig(
        noise_range=none,
        poisson_scale_range=none,
        jpeg_range=best,
        noise_range2=none,
        poisson_scale_range2=none,
        jpeg_range2=best,
    )
    photos = torch.stack([synthetic_photo(128, 160, seed=seed) for seed in range(24)])
    seeds = list(range(24))
    made, drawn = degrade(photos, seeds, config)
    samples = plain(draw_parameters(seeds, config, height=128, width=160, scale=4), (32, 40))
    compared = 0
    for photo, mine, record, sample in zip(photos, made, drawn, samples, strict=True):
        modes = {record["first"]["mode"], record["second"]["mode"], record["final_mode"]}
        if "area" in modes:  # OpenCV weighs pixels that a window touches in part, torch does not
            continue
        other = torch.from_numpy(degrade_one(photo.permute(1, 2, 0).numpy(), sample)).permute(2, 0, 1)
        assert (mine - other).abs().mean() * 255 < 1
        compared += 1
    assert compared >= 8
