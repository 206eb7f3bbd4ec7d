"""The demo: its faults are where it says, its page and sheet hold every figure, and it needs no network."""

from __future__ import annotations

import base64
import io
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from finpercep.cli.main import app
from finpercep.data.demo_photos import PHOTOS, load_photo
from finpercep.demo import real_faults
from finpercep.demo.page import write_page, write_sheet
from finpercep.demo.run import FAULTS
from finpercep.demo.scenes import Scene, make_scene, most_different_box, score_scene
from finpercep.models import RewardModel


@pytest.fixture(scope="module")
def scene(make_photo: Callable[..., torch.Tensor], small_model: RewardModel) -> Scene:
    return score_scene(small_model, make_scene("a <photo>", make_photo(96, 120), "smooth", "look & see", seed=3))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_fault_is_inside_the_box_and_nowhere_else(scene: Scene) -> None:
    photo, rebuilt, implanted = scene.cases
    assert implanted.box is not None
    left, top, right, bottom = implanted.box
    inside = (slice(None), slice(top, bottom), slice(left, right))
    assert torch.equal(implanted.image[inside], rebuilt.image[inside])
    rest = implanted.image.clone()
    rest[inside] = photo.image[inside]
    assert torch.equal(rest, photo.image)
    assert (bottom - top, right - left) == (round(0.34 * 96), round(0.34 * 120))
    assert not torch.equal(photo.image[inside], rebuilt.image[inside])


def test_scenes_are_the_same_every_time(make_photo: Callable[..., torch.Tensor], scene: Scene) -> None:
    again = make_scene("a <photo>", make_photo(96, 120), "smooth", seed=3)
    assert all(torch.equal(a.image, b.image) for a, b in zip(again.cases, scene.cases, strict=True))


def test_most_different_box() -> None:
    photo = torch.zeros(3, 100, 100)
    other = photo.clone()
    other[:, 50:84, 20:54] = 1
    assert most_different_box(photo, other) == (20, 50, 54, 84)


def test_figures_belong_to_the_images(scene: Scene, small_model: RewardModel) -> None:
    for case in scene.cases:
        out = small_model.score([case.image])
        assert case.score == pytest.approx(out.score.item())
        assert case.map is not None
        assert torch.equal(case.map, out.map[0])
    inside, outside = scene.cases[2].inside_outside()
    degradation, box = scene.cases[2].map, scene.cases[2].box
    assert degradation is not None
    assert box is not None
    area = (box[2] - box[0]) * (box[3] - box[1])
    total = inside * area + outside * (96 * 120 - area)
    assert total == pytest.approx(float(degradation.double().sum()), rel=1e-4)


def test_page_is_self_contained_and_complete(scene: Scene, tmp_path: Path) -> None:
    page = write_page([scene, scene], tmp_path / "out" / "index.html", "finpercep-tiny", "c0ffee", 1.5)
    text = page.read_text()
    assert "a &lt;photo&gt;" in text  # names are escaped
    assert "look &amp; see" in text
    assert "c0ffee" in text
    assert "{" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)  # no placeholder was left
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert f"<b>{2 * scene.ordered} of 2</b>" in text
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(pictures) == 12
    assert {Image.open(io.BytesIO(base64.b64decode(p))).size for p in pictures} == {(120, 96)}
    for case in scene.cases:
        for value in (case.score, case.map_mean, case.map_worst):
            assert f"<dd>{value:.3f}</dd>" in text
    left, top, right, bottom = scene.cases[2].box or (0, 0, 0, 0)
    rectangle = f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>'
    assert text.count(rectangle) == 4  # on picture and map of the implanted case only
    assert [p.name for p in page.parent.iterdir()] == ["index.html"]


def test_sheet_shows_every_picture(scene: Scene, tmp_path: Path) -> None:
    with Image.open(write_sheet([scene], tmp_path / "sheet.png", width=120)) as sheet:
        first = torch.frombuffer(bytearray(sheet.crop((16, 40, 136, 136)).tobytes()), dtype=torch.uint8)
        assert sheet.size == (3 * 244 + 64, 40 + 96 + 34 + 34)
    expected = (scene.cases[0].image * 255).round().to(torch.uint8).permute(1, 2, 0).flatten()
    assert torch.equal(first, expected)


@pytest.mark.usefixtures("no_network")
def test_photos_come_with_scikit_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage", reason="the demo's photos come with scikit-image")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in PHOTOS:
        photo = load_photo(name)
        assert photo.shape[0] == 3
        assert min(photo.shape[1:]) >= 300
        assert 0 <= photo.min() < 0.1
        assert 0.8 < photo.max() <= 1


def test_a_real_gan_is_shown_where_one_is_installed(
    make_photo: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real network replaced: what it is given, and where its result goes."""
    monkeypatch.setattr(real_faults.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(real_faults, "packaged_models", lambda: {real_faults.MODEL: Path("x.param")})
    given = []

    def network(lr: torch.Tensor) -> torch.Tensor:
        given.append(lr)
        return torch.nn.functional.interpolate(lr, scale_factor=4.0) * 1.5 - 0.25

    monkeypatch.setattr(real_faults, "NcnnSource", lambda *_, **__: SimpleNamespace(model=network))
    photo = make_photo(300, 320)
    scene = real_faults.real_scene("cat", photo)
    assert scene is not None
    assert scene.cases[0].image.shape == (3, 256, 256)
    assert torch.equal(scene.cases[0].image, photo[:, 22:278, 32:288])
    assert given[0].shape == (1, 3, 64, 64)
    assert torch.equal(scene.cases[1].image, network(given[0])[0].clamp(0, 1))
    assert scene.source == "realesrgan-x4plus"


@pytest.mark.usefixtures("no_network")
def test_command(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage", reason="the demo's photos come with scikit-image")
    monkeypatch.setattr(real_faults, "packaged_models", dict)  # as on a machine without the GAN
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--model", str(model_folder), "--rl-steps", "0"])
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "sheet.png"]
    for name in FAULTS:
        assert re.search(rf"^{name} +\w+( +[01]\.\d{{3}}){{5}}", result.stdout, flags=re.M)
    assert real_faults.MORE in result.stdout
    assert str(tmp_path / "index.html") in result.stdout
