"""Held-out measures by value, and the alarm's rule."""

from __future__ import annotations

import pytest
import torch

from finpercep.models import RewardOutput
from finpercep.rl.monitors import (
    Alarm,
    MonitorConfig,
    check_measured,
    color_entropy,
    edge_density,
    gray,
    high_frequencies,
    recompressed,
    score_map_gap,
    share_lost,
    ssim,
    velocity_figures,
)
from tests.rl.toy import Toy, batch


def test_ssim_is_that_of_scikit_image(make_photo):
    skimage = pytest.importorskip("skimage.metrics")
    photo, other = make_photo(48, 40, seed=1), make_photo(48, 40, seed=2)
    images = (0.7 * photo + 0.3 * other)[None]
    x, y = gray(images)[0, 0].double().numpy(), gray(photo[None])[0, 0].double().numpy()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, full = skimage.structural_similarity(x, y, full=True, **options)
    assert float(ssim(images, photo[None])) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-5)
    assert float(ssim(photo[None], photo[None])) == pytest.approx(1.0)


def test_edges():
    """One step of height 0.5: the two columns beside it have a slope of 0.25."""
    images = torch.zeros(2, 3, 6, 8)
    images[0, :, :, 4:] = 0.5
    assert edge_density(images).tolist() == pytest.approx([2 / 8, 0.0])
    assert edge_density(0.5 * images).tolist() == pytest.approx([2 / 8, 0.0])  # 0.125 is above a tenth
    assert edge_density(0.3 * images).tolist() == [0.0, 0.0]  # and 0.075 below


def test_high_frequencies():
    waves = torch.arange(16.0)
    slow, grid = torch.cos(2 * torch.pi * waves / 16), torch.cos(torch.pi * waves)
    images = torch.stack([0.5 + 0.2 * slow, 0.5 + 0.2 * grid, 0.5 + 0.2 * slow + 0.1 * grid])
    images = images[:, None, None].expand(3, 3, 16, 16)
    assert high_frequencies(images).tolist() == pytest.approx([0, 1, 0.01 / (0.01 + 0.02)], abs=1e-5)
    assert high_frequencies(torch.full((1, 3, 4, 4), 0.3)).tolist() == pytest.approx([0.0], abs=1e-4)
    third, quarter = (torch.cos(2 * torch.pi * count * waves / 16) for count in (5, 4))
    across = 0.5 + 0.1 * torch.stack([third, quarter])[:, None, None].expand(2, 3, 16, 16)
    assert high_frequencies(across).tolist() == pytest.approx([1, 0], abs=1e-4)  # 5/16 is above a quarter, 4/16 not
    both = 0.5 + 0.2 * slow[:, None] + 0.1 * grid  # the one along columns, the other along rows
    expected = [0.01 / (0.01 + 0.02)]
    assert high_frequencies(both.expand(1, 3, 16, 16)).tolist() == pytest.approx(expected, abs=1e-5)


def test_color_entropy():
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0, :2], images[1, 2, :, :2] = 0.9, 0.9  # four colors, equally often
    assert color_entropy(images).tolist() == pytest.approx([0.0, 2.0])
    images[0, :, :, :2], images[1] = 0.3, 0.3
    images[0, :, :, 2:], images[1, :, :, 2:] = 0.4, 0.26  # eighths: 2 and 3; 2 and 2
    assert color_entropy(images).tolist() == pytest.approx([1.0, 0.0])


def test_recompressed(make_photo):
    photo = make_photo(32, 32)[None]
    assert 0.001 < float((recompressed(photo, 40) - photo).abs().mean()) < 0.1
    assert torch.equal(recompressed(photo), recompressed(photo, 75))


def test_velocities_against_the_reference():
    """Before training the distance is 0; of three times the reference's velocity it is 4, of half of it a quarter."""
    for factor, distance in ((1.0, 0.0), (3.0, 4.0), (0.5, 0.25)):
        generator = Toy()
        for parameter in generator.second.parameters():
            parameter.data *= factor
        found = velocity_figures(generator, batch(), 3)
        assert found["velocity_distance"].tolist() == pytest.approx([distance, distance])
        assert found["velocity_norm"].tolist() == pytest.approx([factor, factor])
    generator = Toy()
    for one in (generator, *generator.reference):  # a last layer that begins at 0
        for parameter in one.second.parameters():
            parameter.data *= 0
    found = velocity_figures(generator, batch(), 3)
    assert [value.tolist() for value in found.values()] == [[0.0, 0.0], [0.0, 0.0]]


def test_share_lost():
    """Of a reward of 0.6 on the mean; rewards below 0 have a size too."""
    assert share_lost(torch.tensor([0.2, 1.0]), torch.tensor([0.2, 0.4])).tolist() == pytest.approx([0.0, 1.0])
    assert share_lost(torch.tensor([-3.0, -1.0]), torch.tensor([-4.0, -1.5])).tolist() == pytest.approx([0.5, 0.25])
    assert share_lost(torch.zeros(2), torch.zeros(2)).tolist() == [0.0, 0.0]
    assert share_lost(torch.tensor([0.01, 0.03]), torch.tensor([0.03, 0.03])).tolist() == pytest.approx([-0.2, 0.0])


def test_score_map_gap():
    """The worst of 100 pixels is its worst 1 %: a good score over a fault, a bad one over a clean map, and accord."""
    maps = torch.zeros(3, 1, 10, 10)
    maps[0, 0, 4, 4], maps[2, 0, :, 3] = 0.75, 0.5
    found = score_map_gap(RewardOutput(torch.tensor([1.0, 0.25, 0.5]), maps))
    assert found.tolist() == pytest.approx([0.75, 0.75, 0.0])
    assert score_map_gap(RewardOutput(torch.ones(2), None)) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_is_not_finite_is_named(bad):
    found = {"psnr": torch.tensor([30.0, 20.0]), "judge": torch.tensor([0.5, bad])}
    with pytest.raises(FloatingPointError, match=rf"^judge: .* each held-out photo, got {bad} of number 1 at step 7$"):
        check_measured(found, 7)
    check_measured({"psnr": found["psnr"]}, 7)
    with pytest.raises(FloatingPointError, match=r"at step 7; the run can go on without it in monitors.metrics$"):
        check_measured(found, 7, ["judge"])


def values(reward, psnr):
    return {"reward_avg": torch.tensor(reward), "psnr": torch.tensor(psnr), "severity": torch.tensor([0.5, 0.5])}


def test_alarm():
    """Two measurements later the reward is up and PSNR down on every photo; severity stays."""
    alarm = Alarm(2)
    assert alarm.note("a", values([0.1, 0.2], [30.0, 20.0])) == []
    assert alarm.note("a", values([0.2, 0.3], [29.0, 19.0])) == []
    (text,) = alarm.note("a", values([0.3, 0.4], [28.0, 18.1]))
    assert text.startswith("over 2 measurements the reward rose by 0.2000")
    assert "psnr went from 25.0000 to 23.0500" in text
    other = Alarm(2)
    other.load_state(alarm.state())
    assert other.note("a", values([0.4, 0.5], [27.0, 17.0])) != []


def test_each_measure_has_its_sign():
    """Severity is worse the higher it is; others are taken by the sign that they are given with."""
    alarm = Alarm(1, {"niqe": 1, "st-lpips": -1})
    first = {"reward_avg": [0.1, 0.2], "judge": [0.6, 0.5], "ssim": [0.5, 0.6], "severity": [0.2, 0.3]}
    worse = {"reward_avg": [0.3, 0.4], "judge": [0.5, 0.4], "ssim": [0.4, 0.5], "severity": [0.3, 0.4]}
    first |= {"niqe": [-4.0, -5.0], "st-lpips": [0.1, 0.2], "unknown": [1.0, 2.0]}
    worse |= {"niqe": [-5.0, -6.0], "st-lpips": [0.2, 0.3], "unknown": [0.0, 1.0]}
    both = [{name: torch.tensor(values) for name, values in found.items()} for found in (first, worse)]
    assert alarm.note("a", both[0]) == []
    said = [text.partition(" and ")[2].split()[0] for text in alarm.note("a", both[1])]
    assert sorted(said) == ["judge", "niqe", "severity", "ssim", "st-lpips"]
    better = Alarm(1, {"niqe": 1, "st-lpips": -1})
    better.note("a", both[1])
    assert better.note("a", {**both[0], "reward_avg": torch.tensor([0.4, 0.5])}) == []


def test_what_is_forgotten_or_long_ago_is_not_compared_with():
    alarm = Alarm(1)
    alarm.note("a", values([0.1, 0.2], [30.0, 20.0]))
    alarm.forget("psnr")
    assert alarm.note("a", values([0.3, 0.4], [28.0, 18.1])) == []
    assert alarm.note("a", values([0.3, 0.4], [27.0, 17.0])) == []  # since the last one it has not risen
    assert len(alarm.measured) == 2


@pytest.mark.parametrize(
    ("reward", "psnr"),
    [
        ([0.1, 0.1], [28.0, 18.0]),  # the reward has not risen
        ([0.3, 0.4], [31.0, 21.0]),  # better
        ([0.3, 0.4], [20.0, 21.0]),  # worse on one photo alone: within two standard errors
    ],
)
def test_no_alarm(reward, psnr):
    alarm = Alarm(1)
    alarm.note("a", values([0.1, 0.2], [30.0, 20.0]))
    assert alarm.note("a", values(reward, psnr)) == []


def test_another_version_begins_anew():
    alarm = Alarm(1)
    alarm.note("a", values([0.1, 0.2], [30.0, 20.0]))
    assert alarm.note("b", values([0.3, 0.4], [28.0, 18.1])) == []
    assert len(alarm.note("b", values([0.4, 0.5], [27.0, 17.0]))) == 1


def test_options():
    with pytest.raises(ValueError, match="alarm: expected one of off, warn, stop, got 'loud'"):
        MonitorConfig(alarm="loud")
