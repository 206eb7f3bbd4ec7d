"""The climb test with rewards whose way up is known."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from finpercep.data import FilterBank, Scene, fault_target, jpeg
from finpercep.evaluation import report
from finpercep.evaluation.climb import (
    Climb,
    climb,
    climb_all,
    climb_figures,
    climb_summary,
    climb_table,
    climb_test,
    picks,
)
from finpercep.models import RewardModel, RewardOutput


class Brightness(nn.Module):
    """Score: the mean."""

    fingerprint = "brightness"

    def forward(self, images: Tensor) -> RewardOutput:
        return RewardOutput(images.flatten(1).mean(1), None)


class Blind(nn.Module):
    """A score without a gradient."""

    fingerprint = "blind"

    def forward(self, images: Tensor) -> RewardOutput:
        return RewardOutput(torch.zeros(len(images)), None)


def scene(name: str = "s", sources: tuple[str, ...] = ("dark",), *, gain: int = 8) -> Scene:
    """A photo of 48x40 around mid-gray, its results `gain` levels darker."""
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(100, 150, (3, 48, 40), dtype=torch.uint8, generator=generator)
    images = {"": photo, **dict.fromkeys(sources, photo - gain)}
    return Scene(name, Path("gt"), {source: Path(source) for source in sources}, images)


def test_steps_of_adam_on_a_slope():
    """Where all gradients are equal, Adam moves every pixel by its rate in every step."""
    image = torch.full((3, 16, 16), 0.5)
    climbed, scores = climb(Brightness(), image, steps=10, rate=0.001)
    torch.testing.assert_close(climbed, torch.full_like(image, 0.51))
    assert scores == pytest.approx([0.5 + 0.001 * i for i in range(11)], abs=1e-6)
    assert torch.equal(image, torch.full((3, 16, 16), 0.5))


def test_pixels_stay_in_range():
    climbed, scores = climb(Brightness(), torch.full((3, 8, 8), 0.998), steps=5)
    assert torch.equal(climbed, torch.ones(3, 8, 8))
    assert scores[-1] == 1


def test_a_model_is_climbed_and_keeps_its_weights(small_model: RewardModel) -> None:
    before = {name: value.clone() for name, value in small_model.state_dict().items()}
    image = torch.rand(3, 32, 40, generator=torch.Generator().manual_seed(0))
    _, scores = climb(small_model, image, steps=8)
    assert scores[-1] > scores[0]
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())
    assert all(p.grad is None for p in small_model.parameters())


def test_figures_of_a_climb():
    """8 levels below the photo and about a quarter of a level up in a step: above it from the 32nd step on."""
    place = scene()
    photo, image = place.gt.float() / 255, place.sr("dark").float() / 255
    one = climb_test(Brightness(), place, "dark")
    assert (one.scene, one.source) == ("s", "dark")
    assert one.photo == pytest.approx(photo.mean().item())
    assert one.start == pytest.approx(one.photo - 8 / 255, abs=1e-6)
    assert one.end == pytest.approx(one.start + 0.05, abs=1e-5)
    assert one.passed == math.ceil(8 / 255 / 0.001)
    stored = image + 13 / 255  # 0.05 is 12.75 levels
    assert one.stored == pytest.approx(stored.mean().item(), abs=1e-6)
    assert one.jpeg75 == pytest.approx(jpeg(stored, 75).mean().item(), abs=1e-6)
    assert one.resized == pytest.approx(one.stored, abs=1e-3)
    assert one.psnr == pytest.approx(20 * math.log10(255 / 13), abs=1e-3)
    assert one.psnr_start == pytest.approx(20 * math.log10(255 / 8), abs=1e-3)
    assert one.psnr_end == pytest.approx(20 * math.log10(255 / 5), abs=1e-3)
    targets = fault_target(photo[None], torch.stack([image, stored]), FilterBank()).mean((1, 2, 3))
    assert (one.severity_start, one.severity_end) == pytest.approx(tuple(targets.tolist()))
    assert one.severity_end < one.severity_start  # 5 levels above the photo rather than 8 below it


def test_a_result_that_does_not_pass_its_photo():
    assert climb_test(Brightness(), scene(gain=20), "dark").passed is None
    assert climb_test(Brightness(), scene(gain=-3), "dark").passed == 0


def test_each_source_goes_on_where_the_last_one_ended():
    scenes = [scene(f"s{i}", ("a", "b") if i < 3 else ("a",)) for i in range(4)]
    chosen = [(place.id, source) for place, source in picks(scenes, 2)]
    assert chosen == [("s0", "a"), ("s1", "a"), ("s2", "b"), ("s0", "b")]
    assert len({(place.id, source) for place, source in picks(scenes, 9)}) == len(picks(scenes, 9)) == 7
    with pytest.raises(ValueError, match="at least 1 result of each source, got 0"):
        picks(scenes, 0)


def made(passed: int | None, start: float = 0.1, jpeg75: float = 0.4, psnr: float = 40.0, source: str = "a") -> Climb:
    return Climb("s", source, 0.5, start, 0.62, 0.6, jpeg75, 0.3, psnr, 20.0, 21.5, 0.2, 0.3, passed)


def test_summary():
    climbs = [made(3), made(10, jpeg75=0.7), made(None, psnr=math.inf), made(0, start=0.8, source="b")]
    summary = climb_summary(climbs)
    assert summary["climbs"] == 4
    assert summary["below"] == 3  # the last one starts above its photo
    assert summary["passed"] == pytest.approx(2 / 3)
    assert summary["median_step"] == 6.5
    assert summary["jpeg_change"] == pytest.approx((0.2 + 0.1 + 0.2 + 0.2) / 4)
    assert summary["psnr"] == pytest.approx(40)
    assert (summary["psnr_start"], summary["psnr_end"]) == pytest.approx((20, 21.5))
    assert summary["start"] == pytest.approx(1.1 / 4)
    assert (summary["end"], summary["resized"]) == pytest.approx((0.62, 0.3))
    assert climb_summary([made(None)])["median_step"] is None
    assert climb_summary([made(0, start=0.8)])["passed"] is None


def test_figures_for_json():
    figures = climb_figures([made(3), made(None, psnr=math.inf, source="b")])
    assert [one["psnr"] for one in figures["results"]] == [40.0, None]
    assert figures["results"][0]["passed"] == 3
    assert figures["sources"]["a"]["passed"] == 1
    assert figures["sources"]["b"]["passed"] == 0
    assert figures["summary"]["passed"] == 0.5


def test_table():
    buffer = io.StringIO()
    Console(file=buffer, width=130).print(climb_table([made(3), made(10, jpeg75=0.7), made(None, source="b")]))
    title, head, a, b, both = (line.split() for line in buffer.getvalue().splitlines())
    assert " ".join(title) == "climb test: 50 Adam steps of 0.001; 3 results, 3 not above their photo"
    assert head[:4] == ["source", "passed", "step", "photo"]
    scores, distances = ["0.500", "0.100", "0.620", "0.600"], ["40.0", "20.0", "21.5", "0.200", "0.300"]
    assert a == ["a", "(2)", "1.000", "6.5", *scores, "0.550", "0.300", "0.150", *distances]
    assert b == ["b", "(1)", "0.000", *scores, "0.400", "0.300", "0.200", *distances]
    assert both[:4] == ["all", "(3)", "0.667", "6.5"]


def test_names_with_brackets_are_printed_as_they_are():
    buffer = io.StringIO()
    sources = ("esrgan[v2]", "esrgan[/v2]", ":x:")
    Console(file=buffer, width=130).print(climb_table([made(3, source=source) for source in sources]))
    assert [line.split()[0] for line in buffer.getvalue().splitlines()[2:5]] == [*sources]


def test_all_sources_and_progress():
    done = []
    climbs = climb_all(
        Brightness(), [scene("s0", ("a", "b")), scene("s1", ("a",))], 2, steps=2, progress=lambda: done.append(1)
    )
    assert [(one.scene, one.source) for one in climbs] == [("s0", "a"), ("s1", "a"), ("s0", "b")]
    assert len(done) == 3


def test_errors():
    image = torch.zeros(3, 8, 8)
    for options in ({"steps": 0}, {"rate": 0.0}):
        with pytest.raises(ValueError, match="at least 1 step and a positive rate"):
            climb(Brightness(), image, **options)
    with pytest.raises(ValueError, match="expected a reward with a gradient"):
        climb(Blind(), image)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = []
    for i in range(2):
        place = scene(f"s{i}", ("dark", "darker"))
        (tmp_path / "val" / place.id).mkdir(parents=True)
        for name in ("", *place.sources):
            pixels = (place.sr(name) if name else place.gt).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / "val" / place.id / f"{name or 'gt'}.png")
        sr = {source: f"{source}.png" for source in place.sources}
        lines.append(json.dumps({"split": "val", "id": place.id, "gt": "gt.png", "sr": sr}))
    (tmp_path / "index.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_report_has_climbs_and_intervals_where_asked(folder: Path, small_model: RewardModel) -> None:
    written, texts = [], []
    for options in ({}, {"climb": 1, "intervals": True}):
        buffer = io.StringIO()
        console = Console(file=buffer, width=130)
        file = folder / "figures.json"
        report.run(folder, model=small_model, name="small", metrics=[], json_file=file, console=console, **options)
        written.append(json.loads(file.read_text()))
        texts.append(buffer.getvalue())
    assert texts[1].startswith(texts[0].partition("small, shift none: each source alone")[0])
    assert "climb test" not in texts[0]
    assert "95 % intervals" not in texts[0]
    assert "climb test: 50 Adam steps of 0.001; 2 results" in texts[1]
    assert "shift none: 95 % intervals" in texts[1]
    climbs = written[1].pop("climb")
    assert [(one["scene"], one["source"]) for one in climbs["results"]] == [("s0", "dark"), ("s1", "darker")]
    assert all(one["end"] > one["start"] for one in climbs["results"])
    found = [evaluation.pop("intervals") for evaluation in written[1]["evaluations"]]
    low, high = found[0]["overall"]["auc"]
    assert low <= written[0]["evaluations"][0]["overall"]["auc"] <= high
    assert written[1] == written[0]  # the rest is the same


def test_a_climb_needs_a_model(folder: Path) -> None:
    with pytest.raises(ValueError, match="climb: expected a model, got none"):
        report.run(folder, model=None, metrics=[], climb=1)
