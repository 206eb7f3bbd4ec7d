"""The evaluation on small scenes with judges whose figures are known beforehand."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
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
from finpercep.data.dataset.stored import StoredScene
from finpercep.data.identity import scenes_fingerprint
from finpercep.evaluation import baselines, report
from finpercep.evaluation.evaluate import evaluate, evaluate_all
from finpercep.evaluation.metrics import MAP_METRICS
from finpercep.evaluation.trials import iterate_trials, parse_shift, trial_seed
from finpercep.models import RewardModel, RewardOutput

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

    def __call__(self, images: list[Tensor]) -> RewardOutput:
        trial = self.trials[self.calls]
        self.calls += 1
        count = len(trial.sources)
        clean, all_bad = torch.zeros(trial.photo.shape[1:]), torch.ones(trial.photo.shape[1:])
        scores = [1.0] + [0.2] * count + [0.6] * count
        maps = [clean] + [all_bad] * count + trial.targets
        values = torch.tensor(scores)
        return RewardOutput(values, maps) if self.right else RewardOutput(-values, [1 - m for m in maps])


def constant(images: list[Tensor]) -> RewardOutput:
    return RewardOutput(torch.full((len(images),), 0.3), [torch.full(image.shape[1:], 0.25) for image in images])


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
    def fails_on_grain(images: list[Tensor]) -> RewardOutput:
        # photo; smooth, grain; smooth, grain implanted
        return RewardOutput(torch.tensor([0.5, 0.1, 0.9, 0.3, 0.8]), None)

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
    got = evaluate(baselines.difference_oracle(), scenes)
    assert got.overall["gt_over_sr"] is None
    assert got.overall["auc"] > 0.95
    assert got.overall["clean_mean"] == 0


def test_baseline_maps() -> None:
    image = torch.zeros(3, 40, 60)
    image[:, :, 30:] = torch.rand(3, 40, 30, generator=torch.Generator().manual_seed(0))
    scores, (heat,) = baselines.center_map()([image])
    assert scores.isnan().all()
    assert heat.shape == (1, 40, 60)
    maps = heat
    assert maps[0].argmax() // 60 in (19, 20)
    assert maps[0][0, 30] == pytest.approx(np.exp(-0.5 * (0.4875 / 0.25) ** 2), rel=0.01)
    _, heats = baselines.flatness_map()([image, torch.full((3, 8, 8), 0.3)])
    maps = [heat[0] for heat in heats]
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
        def score(self, images: Tensor, *, batch_size: int) -> RewardOutput:
            assert images.shape == (2, 3, 8, 9)
            assert batch_size == 8
            return RewardOutput(images.mean((1, 2, 3)), images[:, :1])

    images = [torch.zeros(3, 8, 9), torch.ones(3, 8, 9)]
    scores, maps = baselines.reward_judge(Model())(images)  # type: ignore[arg-type]
    assert scores.tolist() == [0, 1]
    assert maps is not None
    assert maps[1].shape == (1, 8, 9)


def test_reward_judge_takes_a_reward_model(scenes: list) -> None:
    torch.manual_seed(0)
    model = RewardModel(encoder={"type": "conv"}, decoder={"width": "light"}).eval()
    images = [scenes[0].gt.float() / 255, scenes[0].sr("smooth").float() / 255]
    scores, maps = baselines.reward_judge(model)(images)
    with torch.no_grad():
        expected = model(torch.stack(images))
    torch.testing.assert_close(scores, expected.score, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.stack(list(maps)), expected.map)
    got = evaluate(baselines.reward_judge(model), scenes[:1]).overall
    assert 0 <= got["clean_mean"] <= 1
    assert got["pairs"] == 2


def test_a_model_without_a_map_has_no_figures_of_maps(scenes: list) -> None:
    torch.manual_seed(0)
    got = evaluate(baselines.reward_judge(RewardModel(encoder={"type": "conv"}).eval()), scenes[:1]).overall
    assert got["gt_over_sr"] is not None
    assert got["cc"] is got["clean_mean"] is None
    assert got["maps"] == 0


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
    def bad(images: list[Tensor]) -> RewardOutput:
        return RewardOutput(torch.zeros(1), None)

    with pytest.raises(ValueError, match="bad: scene s0: expected 5 scores, one per image, got 1"):
        evaluate_all({"good": constant, "bad": bad}, scenes)

    def small(images: list[Tensor]) -> RewardOutput:
        return RewardOutput(torch.zeros(len(images)), [torch.zeros(4, 4)] * len(images))

    with pytest.raises(ValueError, match=r"prediction: expected \(64, 96\) like the target, got \(4, 4\)"):
        evaluate(small, scenes)

    def broken_on_results(images: list[Tensor]) -> RewardOutput:
        maps = torch.zeros(len(images), 1, *images[0].shape[-2:])
        maps[1, 0, 0, 0] = float("nan")  # of a whole result, whose map no metric reads
        return RewardOutput(torch.zeros(len(images)), maps)

    with pytest.raises(ValueError, match="scene s0: prediction: expected finite values, got NaN or infinity"):
        evaluate(broken_on_results, scenes)


def test_run_prints_the_tables_and_writes_json(data: Path, tmp_path: Path) -> None:
    buffer = io.StringIO()
    evaluations = report.run(
        data,
        model=None,
        shifts=["none", "resize0.7"],
        metrics=[],
        without=["grain"],
        json_file=tmp_path / "table.json",
        console=Console(file=buffer, width=130),
    )
    text = buffer.getvalue()
    assert "shift none: 4 scenes, 8 pairs" in text
    assert "shift resize0.7" in text
    assert "random map, no grain" in text
    figures = json.loads((tmp_path / "table.json").read_text())
    assert (figures["model"], figures["fingerprint"]) == (None, None)
    assert figures["data_fingerprint"] == scenes_fingerprint(load_scenes(data, "val"))
    written = figures["evaluations"]
    assert [e["name"] for e in written[:4]] == [e.name for e in evaluations[:4]]
    oracle = next(e for e in written if e["name"].startswith("|SR"))
    assert oracle["overall"]["gt_over_sr"] is None
    assert oracle["sources"]["smooth"]["pairs"] == 4
    row = next(line for line in text.splitlines() if line.startswith("|SR - GT| oracle"))
    assert f"{oracle['overall']['cc']:.3f}" in row
    assert f"{oracle['overall']['auc']:.3f}" in row


def test_a_baseline_does_not_depend_on_the_shifts_before(data: Path) -> None:
    def noise(shifts: list[str]) -> dict:
        rows = report.run(data, model=None, shifts=shifts, metrics=[], console=Console(file=io.StringIO()))
        return next(e.to_dict() for e in rows if (e.name, e.shift) == ("random map", "jpeg75"))

    assert noise(["none", "jpeg75"]) == noise(["jpeg75"])


def test_run_shows_each_source_of_the_model(
    data: Path, small_model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "reward_judge", lambda model: constant)
    buffer = io.StringIO()
    report.run(data, model=small_model, name="runs/tiny", console=Console(file=buffer, width=130))
    assert "tiny, shift none: each source alone" in buffer.getvalue()
    row = next(line for line in buffer.getvalue().splitlines() if line.startswith("smooth (4)"))
    assert row.split()[2:7] == ["0.500", "0.500", "0.500", "0.000", "0.500"]


def test_json_names_what_was_measured_and_appears_whole(
    data: Path, small_model: RewardModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "table.json"
    options = {"model": small_model, "name": "small", "metrics": [], "console": Console(file=io.StringIO())}
    report.run(data, json_file=file, **options)
    figures = json.loads(file.read_text())
    assert (figures["model"], figures["fingerprint"]) == ("small", small_model.fingerprint)
    before = file.read_bytes()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        report.run(data, json_file=file, seed=1, **options)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"without": ["srgan"]}, r"without: expected some of \['grain', 'smooth'\], got \['srgan'\]"),
        ({"without": list(SOURCES)}, "without: expected to leave at least one source"),
        ({"shifts": ["blur"]}, "shift: expected none, jpegQ or resizeF"),
        ({"split": "test"}, "no scene in split 'test'"),
        ({"json_file": "no/such/folder/x.json"}, "no/such/folder/x.json: expected a file in an existing"),
        ({"json_file": "."}, r"^\.: expected a file, got a folder$"),
        ({"page": "/"}, r"^/: expected a file, got a folder$"),
    ],
)
def test_run_bad_arguments(data: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report.run(data, model=None, metrics=[], **options)


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(report, "_evaluate", lambda *_: pytest.fail("worked"))
    for option in ("json_file", "page"):
        with pytest.raises(ValueError) as error:
            report.run(data, model=None, metrics=[], **{option: tmp_path / "x"})
        expected = f"expected a file in a folder that can be written to, got {tmp_path}"
        assert str(error.value) == f"{tmp_path / 'x'}: {expected}"


def test_a_page_that_cannot_be_written_leaves_the_json_and_the_tables(
    data: Path, small_model: RewardModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(report, "write_cases_page", full)
    files = {"json_file": tmp_path / "f.json", "page": tmp_path / "p.html"}
    buffer = io.StringIO()
    with pytest.raises(OSError, match="full"):
        report.run(data, model=small_model, name="small", metrics=[], console=Console(file=buffer), **files)
    assert "shift none: 4 scenes, 8 pairs" in buffer.getvalue()
    assert json.loads(files["json_file"].read_text())["model"] == "small"


def test_the_files_are_there_whoever_reads_the_tables(data: Path, small_model: RewardModel, tmp_path: Path) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    files = {"json_file": tmp_path / "figures.json", "page": tmp_path / "page.html"}
    with pytest.raises((BrokenPipeError, SystemExit)):
        report.run(data, model=small_model, name="small", metrics=[], console=Console(file=Gone()), **files)
    assert json.loads(files["json_file"].read_text())["evaluations"]
    assert "small: cases" in files["page"].read_text()


def test_one_file_for_figures_and_page_is_refused(
    data: Path, small_model: RewardModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_evaluate", lambda *_: pytest.fail("worked"))
    both = {"json_file": tmp_path / "x", "page": tmp_path / "y" / ".." / "x"}
    (tmp_path / "y").mkdir()
    with pytest.raises(ValueError, match=r"^page: expected another file than that of the figures, got "):
        report.run(data, model=small_model, metrics=[], **both)


def test_a_model_in_the_folder_one_stands_in_has_that_ones_name(
    data: Path, small_model: RewardModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path / "tiny")
    monkeypatch.setattr(baselines, "reward_judge", lambda model: constant)
    for name in (".", "../tiny/"):
        found = report.run(data, model=small_model, name=name, metrics=[], console=Console(file=io.StringIO()))
        assert found[0].name == "tiny"


def test_tables_count_one_scene_as_one(scenes: list) -> None:
    (scene, *_), buffer = scenes, io.StringIO()
    one = replace(scene, sr_paths={"grain": scene.sr_paths["grain"]})
    found = evaluate_all({"a": constant}, [one], seed=0, faults=(1, 3), shift="none")
    Console(file=buffer, width=130).print(report.overall_table(found))
    assert buffer.getvalue().split("\n")[0].rstrip() == "shift none: 1 scene, 1 pair"


def test_tables_print_names_with_brackets_as_they_are(scenes: list) -> None:
    found = evaluate(lambda images: RewardOutput(torch.zeros(len(images)), None), scenes, name="m[a][/b]")
    found = replace(found, results=[replace(row, source=row.source + "[/c]") for row in found.results])
    buffer = io.StringIO()
    console = Console(file=buffer, width=130)
    console.print(report.overall_table([found], ["grain[/c]"]))
    console.print(report.source_table(found))
    text = buffer.getvalue()
    assert "m[a][/b], no grain[/c] " in text
    assert "smooth[/c] (4)" in text
    assert "m[a][/b], shift none: each source alone" in text


def test_run_without_data(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"index.jsonl: not found; expected a data set that make-dataset made, or a folder",
    ):
        report.run(tmp_path / "nowhere", model=None)


def test_a_score_that_is_not_finite_is_named(scenes: list) -> None:
    def broken(images: list[Tensor]) -> RewardOutput:
        return RewardOutput(torch.full((len(images),), float("nan")), None)

    with pytest.raises(ValueError, match=r"^broken: scene s0: expected finite scores, got \(nan, nan, nan\)"):
        evaluate_all({"broken": broken}, scenes)


def test_metric_without_pyiqa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"piqe: expected the package pyiqa.*finpercep\[eval\]"):
        baselines.pyiqa_metric("piqe")


class FakeMetric:
    """The mean of an image, as a metric of pyiqa gives it."""

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "musiq":
            raise OSError("musiq.pth: no such file\nand no network")
        self.name, self.lower_better = name, name == "piqe"

    def __call__(self, images: Tensor) -> Tensor:
        assert images.shape[0] == 1
        if self.name == "fid":
            raise AssertionError("expected two folders")
        return images.mean((1, 2, 3))


@pytest.fixture
def fake_pyiqa(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"NR": ["piqe", "niqe", "musiq", "fid"], "FR": ["psnr"]}
    module = SimpleNamespace(list_models=known.get, create_metric=FakeMetric)
    monkeypatch.setitem(sys.modules, "pyiqa", module)  # type: ignore[arg-type]
    monkeypatch.setattr(baselines, "pyiqa_available", lambda: True)


@pytest.mark.usefixtures("fake_pyiqa")
def test_metrics_are_higher_where_better() -> None:
    images = [torch.full((3, 8, 8), 0.25), torch.full((3, 8, 8), 0.75)]
    for name, expected in (("piqe", [-0.25, -0.75]), ("niqe", [0.25, 0.75])):
        output = baselines.pyiqa_metric(name)(images)
        assert (output.score.tolist(), output.map) == (expected, None)


@pytest.mark.usefixtures("fake_pyiqa")
def test_metrics_that_cannot_be_used(scenes: list) -> None:
    with pytest.raises(ValueError, match=r"no-reference metric of pyiqa, got 'nique'; did you mean 'niqe'"):
        baselines.pyiqa_metric("nique")
    with pytest.raises(ValueError, match=r"no-reference metric of pyiqa, got 'psnr'$"):
        baselines.pyiqa_metric("psnr")
    with pytest.raises(RuntimeError, match=r"^musiq: pyiqa cannot make it: musiq\.pth: no such file and no network$"):
        baselines.pyiqa_metric("musiq")
    with pytest.raises(ValueError, match=r"^FID: scene s0: expected a score of .*, got expected two folders$"):
        evaluate_all({"FID": baselines.pyiqa_metric("fid")}, scenes)


@pytest.mark.usefixtures("fake_pyiqa")
@pytest.mark.parametrize(("metrics", "rows"), [(None, ["PIQE"]), ([], []), (["niqe", "piqe"], ["NIQE", "PIQE"])])
def test_run_sets_the_metrics_beside(data: Path, metrics: list[str] | None, rows: list[str]) -> None:
    buffer = io.StringIO()
    done = report.run(data, metrics=metrics, console=Console(file=buffer, width=130))
    assert [e.name for e in done] == [*rows, *baselines.BASELINES]
    for name in rows:
        assert f"{name}, shift none: each source alone" in buffer.getvalue()


class Brightness(torch.nn.Module):
    fingerprint = "brightness-1"

    def forward(self, images: torch.Tensor) -> RewardOutput:
        return RewardOutput(images.mean((1, 2, 3)), images.mean(1, keepdim=True))


def test_a_reward_of_ones_own_is_a_row(data: Path) -> None:
    name = f"{__name__}:Brightness"
    done = report.run(data, metrics=[name], console=Console(file=io.StringIO(), width=130))
    assert [e.name for e in done] == [name, *baselines.BASELINES]
    assert done[0].overall["gt_over_sr"] is not None
    assert done[0].overall["cc"] is not None


def test_a_mixture_is_a_row(data: Path) -> None:
    name = "finpercep-tiny + 0.5*finpercep-tiny/0"
    done = report.run(data, metrics=[name], console=Console(file=io.StringIO(), width=130))
    assert [e.name for e in done] == [name, *baselines.BASELINES]
    assert done[0].overall["cc"] is not None  # the map is that of the part that has one


def test_a_reward_as_a_judge_sees_batches() -> None:
    images = list(torch.rand(5, 3, 4, 6))
    scores, maps = baselines.reward_judge(Brightness(), batch_size=2)(images)
    torch.testing.assert_close(scores, torch.stack([image.mean() for image in images]))
    assert maps is not None
    for one, image in zip(maps, images, strict=True):
        torch.testing.assert_close(one, image.mean(0, keepdim=True))


def test_a_reward_with_a_score_of_its_own_is_called() -> None:
    """Such as `RemoteReward`, whose `score` takes no batch size."""

    class Remote(Brightness):
        def score(self, images: list[Tensor]) -> RewardOutput:
            raise AssertionError

    images = list(torch.rand(3, 3, 4, 6))
    scores, _ = baselines.reward_judge(Remote(), batch_size=2)(images)
    torch.testing.assert_close(scores, torch.stack([image.mean() for image in images]))


def test_piqe_prefers_the_photo() -> None:
    pytest.importorskip("pyiqa")
    photo = synthetic_photo(128, 128)
    blurred = torch.nn.functional.avg_pool2d(photo, 5, 1, 2)
    scores, maps = baselines.pyiqa_metric("piqe")([photo, blurred])
    assert maps is None
    assert scores[0] > scores[1]


def test_scenes_fingerprint(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "moved")
    scenes = load_scenes(data, "val")
    same = scenes_fingerprint(scenes)
    assert len(same) == 16
    assert same == scenes_fingerprint(load_scenes(copy, "val"))
    others = [scenes[:3], scenes[::-1], load_scenes(data, "val", leave_out=["grain"])]
    others.append([replace(scene, aligned=False) for scene in scenes])
    (copy / "val" / "s0" / "grain.png").write_bytes(b"another file")
    others.append(load_scenes(copy, "val"))
    assert len({same, *map(scenes_fingerprint, others)}) == 6
    (copy / "val" / "s0" / "gt.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"s0/gt\.png"):
        scenes_fingerprint(others[-1])


def test_fingerprint_of_stored_scenes(tmp_path: Path) -> None:
    """Scenes of one file differ by their rows."""
    file = tmp_path / "train-00000.parquet"
    file.write_bytes(b"rows")

    def fingerprint(group: int, rows: list[int]) -> str:
        scene = StoredScene("s", file, {"a": file}, group=group, rows={"a": rows})
        return scenes_fingerprint([scene])

    assert fingerprint(0, [0]) == fingerprint(0, [0])
    assert len({fingerprint(0, [0]), fingerprint(1, [0]), fingerprint(0, [0, 1])}) == 3
