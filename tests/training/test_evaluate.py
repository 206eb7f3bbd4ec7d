"""The evaluation on small scenes with judges whose figures are known beforehand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import Tensor

from finpercep.data import SYNTHETIC_SOURCES, load_scenes
from finpercep.training import baselines, report
from finpercep.training.evaluate import evaluate, evaluate_all
from finpercep.training.metrics import MAP_METRICS
from finpercep.training.trials import iterate_trials, parse_shift, trial_seed

SOURCES = ("smooth", "grain")
SEED_AB = 4286416307407407933  # the faults that published figures were measured on
SIZES = ((64, 96), (64, 64), (80, 64), (64, 96))


def synthetic_photo(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth light, edges and fine texture, (3,H,W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    light = F.interpolate(torch.rand(1, 3, 4, 4, generator=generator), (height, width), mode="bilinear")
    edges = F.interpolate(torch.rand(1, 3, 16, 16, generator=generator).round(), (height, width))
    return (0.6 * light + 0.3 * edges + 0.1 * torch.rand(1, 3, height, width, generator=generator))[0]


def save(image: Tensor, path: Path) -> None:
    Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    lines = []
    for i, size in enumerate(SIZES):
        folder = root / "val" / f"s{i}"
        folder.mkdir(parents=True)
        photo = synthetic_photo(*size, seed=i)
        save(photo, folder / "gt.png")
        for source in SOURCES:
            made = SYNTHETIC_SOURCES[source](photo, torch.Generator().manual_seed(i))
            save(made, folder / f"{source}.png")
        sr = {source: f"{source}.png" for source in SOURCES}
        lines.append(json.dumps({"split": "val", "id": f"s{i}", "gt": "gt.png", "sr": sr}))
    (root / "index.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def scenes(data: Path) -> list:
    return load_scenes(data, "val")


class Answers:
    """A judge that knows every trial: it returns the true maps, or their complement, and ordered scores."""

    def __init__(self, scenes: list, *, right: bool, **options: object) -> None:
        self.trials = list(iterate_trials(scenes, **options))  # type: ignore[arg-type]
        self.right, self.calls = right, 0

    def __call__(self, images: list[Tensor]) -> tuple[list[float], list[Tensor]]:
        trial = self.trials[self.calls]
        self.calls += 1
        count = len(trial.sources)
        clean, all_bad = torch.zeros(trial.photo.shape[1:]), torch.ones(trial.photo.shape[1:])
        scores = [1.0] + [0.2] * count + [0.6] * count
        maps = [clean] + [all_bad] * count + trial.targets
        return (scores, maps) if self.right else ([-s for s in scores], [1 - m for m in maps])


def constant(images: list[Tensor]) -> tuple[list[float], list[Tensor]]:
    return [0.3] * len(images), [torch.full(image.shape[1:], 0.25) for image in images]


@pytest.mark.parametrize("shift", ["none", "jpeg75", "resize0.7"])
def test_true_answers_are_perfect(scenes: list, shift: str) -> None:
    got = evaluate(Answers(scenes, right=True, shift=shift), scenes, shift=shift, name="truth").overall
    assert (got["pairs"], got["scenes"], got["maps"]) == (8, 4, 8)
    assert got["gt_over_sr"] == got["syn_over_sr"] == got["gt_over_syn"] == 1
    assert got["cc"] == pytest.approx(1)
    assert got["sim"] == pytest.approx(1)
    assert got["auc_judd"] == pytest.approx(1)
    assert got["kld"] == pytest.approx(0, abs=1e-9)
    assert got["mae"] == got["clean_mean"] == 0
    assert got["auc"] > 0.95


def test_wrong_answers_are_as_bad_as_can_be(scenes: list) -> None:
    got = evaluate(Answers(scenes, right=False), scenes).overall
    assert got["gt_over_sr"] == got["syn_over_sr"] == got["gt_over_syn"] == 0
    assert got["cc"] == pytest.approx(-1)
    assert got["auc"] < 0.05
    assert got["clean_mean"] == 1


def test_a_constant_judge_knows_nothing(scenes: list) -> None:
    got = evaluate(constant, scenes).overall
    assert got["gt_over_sr"] == got["syn_over_sr"] == got["gt_over_syn"] == 0.5
    assert (got["cc"], got["auc"], got["auc_judd"], got["nss"]) == (0, 0.5, 0.5, 0)
    assert got["clean_mean"] == pytest.approx(0.25)


def test_summary_separates_sources(scenes: list) -> None:
    def fails_on_grain(images: list[Tensor]) -> tuple[list[float], None]:
        return [0.5, 0.1, 0.9, 0.3, 0.8], None  # photo; smooth, grain; smooth, grain implanted

    got = evaluate(fails_on_grain, scenes)
    assert got.sources == list(SOURCES)
    assert got.per_source["smooth"]["gt_over_sr"] == got.per_source["smooth"]["gt_over_syn"] == 1
    assert got.per_source["grain"]["gt_over_sr"] == got.per_source["grain"]["syn_over_sr"] == 0
    assert got.overall["gt_over_sr"] == 0.5
    assert got.summary(without=["grain"])["gt_over_sr"] == 1
    assert got.per_source["grain"]["pairs"] == 4
    assert all(got.overall[name] is None for name in (*MAP_METRICS, "clean_mean"))
    with pytest.raises(ValueError, match=r"source: expected some of .* got \['srgan'\]"):
        got.summary(only=["srgan"])


def test_map_only_judge_has_no_score(scenes: list) -> None:
    got = evaluate(baselines.difference_oracle, scenes)
    assert got.overall["gt_over_sr"] is None
    assert got.overall["auc"] > 0.95
    assert got.overall["clean_mean"] == 0


def test_baseline_maps() -> None:
    image = torch.zeros(3, 40, 60)
    image[:, :, 30:] = torch.rand(3, 40, 30, generator=torch.Generator().manual_seed(0))
    _, maps = baselines.center_map([image])
    assert maps[0].shape == (40, 60)
    assert maps[0].argmax() // 60 in (19, 20)
    assert maps[0][0, 30] == pytest.approx(np.exp(-0.5 * (0.4875 / 0.25) ** 2), rel=0.01)
    _, maps = baselines.flatness_map([image, torch.full((3, 8, 8), 0.3)])
    assert maps[0][:, :28].min() == pytest.approx(1)
    assert maps[0][:, 30:].mean() < 0.8
    assert maps[0].min() == pytest.approx(0, abs=1e-6)
    assert maps[1].min() == pytest.approx(1, abs=1e-3)
    judge = baselines.random_map(0)
    (_, first), (_, second) = judge([image]), judge([image])
    assert not torch.equal(first[0], second[0])
    assert torch.equal(baselines.random_map(0)([image])[1][0], first[0])


def test_reward_judge_scores_a_batch() -> None:
    class Model:
        decoder: object = "any"

        def score(self, images: Tensor, *, batch_size: int) -> SimpleNamespace:
            assert images.shape == (2, 3, 8, 9)
            assert batch_size == 8
            return SimpleNamespace(score=images.mean((1, 2, 3)), map=images[:, :1])

    images = [torch.zeros(3, 8, 9), torch.ones(3, 8, 9)]
    scores, maps = baselines.reward_judge(Model())(images)
    assert scores == [0, 1]
    assert maps[1].shape == (1, 8, 9)
    base = Model()
    base.decoder = None  # RM_0: its map is all zeros and says nothing
    assert baselines.reward_judge(base)(images) == ([0, 1], None)


def test_reward_judge_takes_a_reward_model(scenes: list) -> None:
    from finpercep.models import RewardModel

    torch.manual_seed(0)
    model = RewardModel(encoder={"type": "conv"}, decoder={"width": "light"}).eval()
    images = [scenes[0].gt.float() / 255, scenes[0].sr("smooth").float() / 255]
    scores, maps = baselines.reward_judge(model)(images)
    with torch.no_grad():
        expected = model(torch.stack(images))
    assert scores == pytest.approx(expected.score.tolist(), abs=1e-6)
    torch.testing.assert_close(torch.stack(list(maps)), expected.map)
    got = evaluate(baselines.reward_judge(model), scenes[:1]).overall
    assert 0 <= got["clean_mean"] <= 1
    assert got["pairs"] == 2


def test_faults_depend_on_seed_scene_and_source_only(scenes: list) -> None:
    def masks(subset: list, **options: int) -> list[Tensor]:
        return [mask for trial in iterate_trials(subset, **options) for mask in trial.masks]

    whole = masks(scenes)
    assert all(torch.equal(a, b) for a, b in zip(masks(scenes[2:]), whole[4:], strict=True))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(masks(scenes, seed=1)[0], whole[0])
    assert trial_seed(0, "a", "b") == SEED_AB
    assert trial_seed(0, "ab", "") != SEED_AB != trial_seed(1, "a", "b")


def test_trial_is_a_region_swap(scenes: list) -> None:
    trial = next(iter(iterate_trials(scenes)))
    for i in range(2):
        inside = trial.masks[i].bool()
        assert torch.equal(trial.implanted[i][:, inside], trial.restored[i][:, inside])
        assert torch.equal(trial.implanted[i][:, ~inside], trial.photo[:, ~inside])
        assert trial.targets[i][inside].mean() > 5 * trial.targets[i][~inside].mean()


def test_shifts(scenes: list) -> None:
    plain = next(iter(iterate_trials(scenes)))
    jpeg = next(iter(iterate_trials(scenes, shift="jpeg75")))
    small = next(iter(iterate_trials(scenes, shift="resize0.5")))
    assert torch.equal(jpeg.targets[0], plain.targets[0])
    assert torch.equal(jpeg.masks[0], plain.masks[0])
    assert 0 < (jpeg.photo - plain.photo).abs().mean() < 0.1
    assert small.photo.shape == (3, 32, 48)
    assert small.targets[0].shape == small.masks[0].shape == (32, 48)
    assert small.masks[0].mean().item() == pytest.approx(plain.masks[0].mean().item(), rel=0.2)
    assert set(small.masks[0].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("shift", ["jpeg", "jpeg0", "jpeg99", "resize3", "resize", "blur"])
def test_unknown_shift(shift: str) -> None:
    with pytest.raises(ValueError, match="shift: expected"):
        parse_shift(shift)


def test_bad_arguments(scenes: list) -> None:
    with pytest.raises(ValueError, match=r"faults: expected .* got \(3, 1\)"):
        evaluate(constant, scenes, faults=(3, 1))
    with pytest.raises(ValueError, match="scenes: expected at least one"):
        evaluate(constant, [])


def test_a_bad_judge_is_named(scenes: list) -> None:
    def bad(images: list[Tensor]) -> tuple[list[float], None]:
        return [0.0], None

    with pytest.raises(ValueError, match="bad: scene s0: expected 5 scores, one per image, got 1"):
        evaluate_all({"good": constant, "bad": bad}, scenes)

    def small(images: list[Tensor]) -> tuple[None, list[Tensor]]:
        return None, [torch.zeros(4, 4)] * len(images)

    with pytest.raises(ValueError, match=r"prediction: expected \(64, 96\) like the target, got \(4, 4\)"):
        evaluate(small, scenes)


def test_run_prints_the_tables_and_writes_json(data: Path, tmp_path: Path) -> None:
    buffer = io.StringIO()
    evaluations = report.run(
        data, model=None, shifts=["none", "resize0.7"], piqe=False, without=["grain"],
        json_file=tmp_path / "table.json", console=Console(file=buffer, width=130),
    )  # fmt: skip
    text = buffer.getvalue()
    assert "shift none: 4 scenes, 8 pairs" in text
    assert "shift resize0.7" in text
    assert "random map, no grain" in text
    written = json.loads((tmp_path / "table.json").read_text())["evaluations"]
    assert [e["name"] for e in written[:4]] == [e.name for e in evaluations[:4]]
    oracle = next(e for e in written if e["name"].startswith("|SR"))
    assert oracle["overall"]["gt_over_sr"] is None
    assert oracle["sources"]["smooth"]["pairs"] == 4
    row = next(line for line in text.splitlines() if line.startswith("|SR - GT| oracle"))
    assert f"{oracle['overall']['cc']:.3f}" in row
    assert f"{oracle['overall']['auc']:.3f}" in row


def test_run_shows_each_source_of_the_model(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_judges", lambda model, piqe: ({"tiny": constant}, "f00d"))
    buffer = io.StringIO()
    report.run(data, model="tiny", console=Console(file=buffer, width=130))
    assert "tiny, shift none: each source alone" in buffer.getvalue()
    row = next(line for line in buffer.getvalue().splitlines() if line.startswith("smooth (4)"))
    assert row.split()[2:7] == ["0.500", "0.500", "0.500", "0.000", "0.500"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"without": ["srgan"]}, r"without: expected some of \['grain', 'smooth'\], got \['srgan'\]"),
        ({"without": list(SOURCES)}, "without: expected to leave at least one source"),
        ({"shifts": ["blur"]}, "shift: expected none, jpegQ or resizeF"),
        ({"split": "test"}, "no scene in split 'test'"),
        ({"json_file": "no/such/folder/x.json"}, "no/such/folder/x.json: expected a file in an existing"),
    ],
)
def test_run_bad_arguments(data: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report.run(data, model=None, piqe=False, **options)


def test_run_without_data(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"index.jsonl: not found; expected a data set that make-dataset made, or a folder",
    ):
        report.run(tmp_path / "nowhere", model=None)


def test_piqe_without_pyiqa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"piqe: expected the package pyiqa.*finpercep\[eval\]"):
        baselines.piqe()


def test_piqe_prefers_the_photo() -> None:
    pytest.importorskip("pyiqa")
    photo = synthetic_photo(128, 128)
    blurred = torch.nn.functional.avg_pool2d(photo, 5, 1, 2)
    scores, maps = baselines.piqe()([photo, blurred])
    assert maps is None
    assert scores[0] > scores[1]
