"""Scoring: every kind of image, mixed sizes, tiles without seams, bounded memory, clear errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finpercep import ImageError
from finpercep.models import RewardModel, scoring, tiles, worst_mean
from finpercep.models.norms import freeze_norms

Photo = Callable[..., Tensor]


@pytest.fixture(scope="module")
def model() -> RewardModel:
    torch.manual_seed(3)
    built = RewardModel({"type": "conv", "channels": [8, 16], "depths": [1, 1]}, {"width": 8}).eval()
    assert built.decoder is not None
    with torch.no_grad():
        # A new model hardly sees far: louder convolutions let a missing pixel at the rim of the context show.
        for parameter in built.encoder.parameters():
            parameter.mul_(1.5 if parameter.dim() > 1 else 1)
        built.decoder.conv2.weight.mul_(20)
        built.head.mlp[-1].weight.mul_(20)
    return built


# ------------------------------------------------------------------------------------------------------ inputs


def test_every_kind_of_image_gives_the_same(model: RewardModel, photo_u8: Tensor, tmp_path: Path) -> None:
    array = photo_u8.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "photo.png")
    expected = model((photo_u8.float() / 255)[None])
    one: list[Any] = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        Image.fromarray(array),
        array,
        array / 255.0,
        (array / 255).astype(np.float32),
        photo_u8,
        photo_u8.float() / 255,
        photo_u8.double() / 255,
    ]
    batches: list[Any] = [
        photo_u8[None],
        array[None],
        array[None] / 255.0,
        photo_u8.permute(1, 2, 0)[None],
        photo_u8[None] / 255,
        photo_u8.numpy()[None],
    ]
    for image in (*one, *batches):
        out = model.score(image)
        assert out.score.shape == (1,)
        assert out.map.shape == (1, 1, 64, 96)
        assert torch.allclose(out.score, expected.score, atol=1e-6)
        assert torch.allclose(out.map, expected.map, atol=1e-6)
        assert not out.map.requires_grad
    together = model.score(one)
    assert together.score.shape == (len(one),)
    for i, degradation in enumerate(together.map):
        assert degradation.shape == (1, 64, 96)
        assert torch.allclose(together.score[i], expected.score[0], atol=1e-6)


def test_batches_of_arrays_take_what_single_arrays_take(model: RewardModel, make_photo: Photo) -> None:
    photos = [(make_photo(20, 30, seed) * 255).round().to(torch.uint8).permute(1, 2, 0) for seed in (1, 2)]
    array = torch.stack(photos).numpy()  # (2, 20, 30, 3)
    rgba = np.concatenate([array, array[..., :1]], axis=3)
    kinds = {
        "reversed channels": array[..., ::-1],
        "mirrored": array[:, :, ::-1],
        "big-endian": (array / 255).astype(">f4"),
        "16 bits": array.astype(np.uint16) * 257,
        "RGBA": rgba,
        "gray": array[..., :1],
        "gray and alpha": array[..., :2],
    }
    for kind, batch in kinds.items():
        out, singles = model.score(batch), [model.score(image) for image in batch]
        assert out.map.shape == (2, 1, 20, 30), kind  # type: ignore[union-attr]
        for i, single in enumerate(singles):
            assert torch.allclose(out.score[i], single.score[0], atol=1e-6), kind
            assert torch.allclose(out.map[i], single.map[0], atol=1e-6), kind
    first = model.score(np.ascontiguousarray(rgba.transpose(0, 3, 1, 2)))  # (2, 4, 20, 30)
    assert torch.allclose(first.map, model.score(rgba).map, atol=1e-6)  # type: ignore[arg-type]
    flipped = model.score(array[..., ::-1]).score
    assert (flipped - model.score(array).score).abs().max() > 1e-4  # the channels' order was kept


@pytest.mark.parametrize("channels", [3, 4])
def test_arrays_of_images_three_pixels_high_have_their_channels_last(
    model: RewardModel, make_photo: Photo, channels: int
) -> None:
    photo = (make_photo(3, 30) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    array = np.concatenate([photo, photo[..., :1]], axis=2)[None, ..., :channels]  # (1, 3, 30, C)
    out, single = model.score(array), model.score(array[0])
    assert out.map.shape == (1, 1, 3, 30)  # type: ignore[union-attr]
    torch.testing.assert_close(out.map, single.map)
    tensor = torch.from_numpy(photo)[None].permute(0, 2, 1, 3)  # (1, 30, 3, 3): a tensor's last are channels
    assert model.score(tensor).map.shape == (1, 1, 30, 3)  # type: ignore[union-attr]
    assert model.score(torch.from_numpy(photo)[None]).map.shape == (1, 1, 30, 3)  # type: ignore[union-attr]


def test_a_model_in_training_scores_as_in_evaluation_and_stays_as_it_was(
    make_photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(_: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    torch.manual_seed(0)
    trained = RewardModel({"type": "conv", "channels": [8, 16], "depths": [1, 1], "norm": True}, {"width": 8})
    images = torch.stack([make_photo(24, 32, seed) for seed in range(3)])
    for _ in range(20):
        trained.train()(images)  # running statistics unlike those of one batch
    freeze_norms(trained.encoder.stem)
    modes = [module.training for module in trained.modules()]
    assert len(set(modes)) == 2
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    found = [trained.score(images, batch_size=n, tile=tile) for n, tile in ((3, None), (1, None), (3, 16))]
    with monkeypatch.context() as patch:
        patch.setattr(trained.head, "regress", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            trained.score(images)
    assert [module.training for module in trained.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in trained.state_dict().items())
    expected = trained.eval()(images)
    for out in found:
        assert torch.allclose(out.score, expected.score, atol=1e-5)
        assert torch.allclose(out.map, expected.map, atol=1e-5)  # type: ignore[arg-type]


def test_lists_of_mixed_sizes_keep_their_order(model: RewardModel, make_photo: Photo) -> None:
    sizes = [(20, 30), (1, 1), (3, 41), (20, 30), (64, 8), (20, 30), (50, 3)]
    images = [make_photo(h, w, seed) for seed, (h, w) in enumerate(sizes)]
    images[3] = (images[3] * 255).round().to(torch.uint8)
    out = model.score(images, batch_size=2)
    assert len(set(out.score.tolist())) == len(images)
    for i, image in enumerate(images):
        alone = model(scoring.as_float(image, torch.float32)[None])
        assert out.map[i].shape == (1, *sizes[i])
        assert torch.allclose(out.score[i], alone.score[0], atol=1e-6)
        assert torch.allclose(out.map[i], alone.map[0], atol=1e-6)


def test_batch_size_does_not_matter_but_is_kept(model: RewardModel, make_photo: Photo) -> None:
    images = torch.stack([make_photo(24, 24, seed) for seed in range(7)])
    seen: list[int] = []
    hook = model.encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    a, b = model.score(images, batch_size=3), model.score(images, batch_size=7)
    hook.remove()
    assert seen == [3, 3, 1, 7]
    assert torch.allclose(a.score, b.score, atol=1e-6)
    assert torch.allclose(a.map, b.map, atol=1e-6)


def test_nothing_to_score(model: RewardModel) -> None:
    out = model.score([])
    assert out.score.shape == (0,)
    assert out.map == []
    with pytest.raises(ImageError, match=r"^images: expected at least one image"):
        model.score(torch.zeros(0, 3, 8, 8))


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: torch.full((2, 3, 4, 4), float("nan")),
        r"^images\[0\]: expected values in \[0, 1\], got NaN in 48 of 48",
    ),
    (lambda: torch.full((1, 3, 4, 4), float("inf")), r"^images\[0\]: expected values in \[0, 1\], got inf"),
    (lambda: [torch.zeros(3, 4, 4), torch.full((3, 4, 4), 1.5)], r"^images\[1\]: .* got 1.5 to 1.5"),
    (lambda: np.full((4, 4, 3), 128.0), r"^images: expected values in \[0, 1\], got 128 to 128; divide by 255$"),
    (lambda: torch.eye(4).expand(3, 4, 4) * 2 - 1, r"got -1 to 1; \(x \+ 1\) / 2 brings \[-1, 1\] there$"),
    (lambda: torch.eye(4).expand(3, 4, 4) * 1.1, r"got 0 to 1\.1; clamp\(0, 1\) them$"),
    (lambda: torch.eye(4).expand(3, 4, 4) * 1e4, r"got 0 to 10000$"),
    (lambda: torch.zeros(3, 4, 4, dtype=torch.int64), r"^images: .*int64"),
    (lambda: torch.zeros(2, 2, 3, 4, 4), r"^images: expected .*\(2, 2, 3, 4, 4\)"),
    (lambda: torch.zeros(12), r"^images: expected .*\(12,\)"),
    (lambda: torch.zeros(1, 5, 4, 4), r"^images\[0\]: expected .*\(5, 4, 4\)"),
    (lambda: [torch.zeros(3, 0, 4)], r"^images\[0\]: expected at least 1x1"),
    (lambda: ["gone.png"], r"^gone.png: expected an image file, got no such file"),
    (lambda: [None], r"^images\[0\]: expected a path"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_images(model: RewardModel, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ImageError, match=message) as error:
        model.score(make())
    assert "\n" not in str(error.value)


def test_bad_options(model: RewardModel, photo: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^batch_size: expected at least 1, got 0"):
        model.score(photo, batch_size=0)
    with pytest.raises(ValueError, match=r"^tile: expected at least the encoder's stride of 8 pixels, got 7"):
        model.score(photo, tile=7)


# ------------------------------------------------------------------------------------------------------- tiles


def difference(model: RewardModel, image: Tensor, tile: int) -> tuple[float, float]:
    tiled, whole = model.score(image, tile=tile), model.score(image)
    assert tiled.map.shape == whole.map.shape  # type: ignore[union-attr]
    return float((tiled.score - whole.score).abs().max()), float((tiled.map - whole.map).abs().max())  # type: ignore


@pytest.mark.parametrize(
    ("height", "width", "tile"),
    [(192, 256, 64), (203, 141, 64), (1, 300, 64), (3, 97, 8), (129, 128, 128), (90, 200, 77)],
)
def test_tiles_have_no_seams(model: RewardModel, make_photo: Photo, height: int, width: int, tile: int) -> None:
    score, degradation = difference(model, make_photo(height, width, 4), tile)
    assert score <= 1e-5
    assert degradation <= 1e-5


def test_tiles_of_uint8(model: RewardModel, make_photo: Photo) -> None:
    image = (make_photo(150, 170) * 255).round().to(torch.uint8)
    assert max(difference(model, image, 64)) <= 1e-5


def test_a_narrower_halo_would_show(model: RewardModel, make_photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_photo(203, 141, 4)
    for halo in (0, 16):
        monkeypatch.setattr(scoring, "context_radius", lambda _, halo=halo: halo)
        assert difference(model, image, 64)[1] > 1e-4


def test_the_halo_covers_what_the_model_sees(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel moves nothing outside the radius, by gradients: the map at one place against all pixels.

    By the definition of convolutions: in the kernel's tiles, what lies beside is added and subtracted again.
    """
    monkeypatch.setattr("finpercep.models.conv3x3.takes", lambda *_: False)
    radius = scoring.context_radius(model)
    side = 8 * (2 * radius // 8 + 6)
    torch.manual_seed(0)
    images = torch.rand(1, 3, side, side, requires_grad=True)
    center = side // 2
    model(images).map[0, 0, center, center].backward()
    assert images.grad is not None
    # The tokens' pooled feature and its weights do not enter the map, so this is the encoder's and decoder's reach.
    rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    reach = max(center - int(rows.min()), int(rows.max()) - center)
    assert 16 < reach <= radius


def test_memory_is_bounded_by_the_tile(model: RewardModel, make_photo: Photo) -> None:
    """No call of the encoder sees more than a tile with its halo, however large the image."""
    halo = -(-scoring.context_radius(model) // 8) * 8
    seen: list[tuple[int, int]] = []
    hook = model.encoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    image = (make_photo(60, 1501) * 255).to(torch.uint8)
    out = model.score([image, image], tile=96, batch_size=8)
    hook.remove()
    assert all(s[0] == 1 and s[2] <= 64 and s[3] <= 96 + 2 * halo for s in seen)
    assert len(seen) == 2 * 16
    assert out.map[0].shape == (1, 60, 1501)


def test_a_batch_has_at_most_a_tiles_pixels(model: RewardModel, make_photo: Photo) -> None:
    seen: list[tuple[int, ...]] = []
    hook = model.encoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    model.score(torch.stack([make_photo(96, 96, seed) for seed in range(3)]), tile=96)
    model.score(torch.stack([make_photo(48, 64, seed) for seed in range(5)]), tile=96)
    hook.remove()
    assert seen == [(1, 3, 96, 96)] * 3 + [(3, 3, 48, 64), (2, 3, 48, 64)]
    large = [torch.zeros(1).expand(3, 1536, 1536)] * 8
    assert list(scoring.same_size_groups(large, 8, scoring.TILE)) == [[i] for i in range(8)]
    half = [torch.zeros(1).expand(3, 1024, 1024)] * 3
    assert list(scoring.same_size_groups(half, 8, scoring.TILE)) == [[0, 1], [2]]


@pytest.mark.parametrize("fraction", [0, -1, 2, 1.0001, float("nan"), float("inf")])
def test_worst_mean_of_no_fraction(fraction: float) -> None:
    for maps in (torch.rand(1, 1, 4, 4), [torch.rand(1, 4, 4)], []):
        with pytest.raises(ValueError, match=r"^fraction: expected more than 0 and at most 1, got "):
            worst_mean(maps, fraction)


def test_worst_mean_is_of_a_rounded_number_of_pixels_and_of_one_at_least() -> None:
    """A hundredth of 150 pixels is two, of 4 it is one."""
    maps = torch.zeros(1, 1, 10, 15)
    maps[0, 0, 3, 4], maps[0, 0, 8, 1], maps[0, 0, 0, 0] = 0.9, 0.7, 0.5
    assert worst_mean(maps).item() == pytest.approx(0.8)
    assert worst_mean(maps[..., 3:5, 3:5]).item() == pytest.approx(0.9)


def test_worst_mean_is_float32_of_half_precision_and_float64_of_double() -> None:
    maps = torch.rand(2, 1, 300, 200, generator=torch.Generator().manual_seed(0))
    for given, result in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        worst = worst_mean(maps.to(given), 0.5)
        expected = maps.to(given).double().flatten(1).sort(descending=True).values[:, :30_000].mean(1)
        assert worst.dtype == result
        assert (worst - expected).abs().max() < 1e-6
    assert torch.allclose(worst_mean(maps, 1), maps.mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("length", "side", "halo"), [(64, 64, 16), (65, 64, 16), (1, 8, 8), (200, 24, 40), (129, 32, 0)]
)
def test_spans_cover_every_pixel_once(length: int, side: int, halo: int) -> None:
    covered = []
    for span, core in tiles.tile_spans(length, side, halo, 8):
        assert 0 <= core.start < core.stop <= span.stop - span.start <= side + 2 * halo
        assert all(edge % 8 == 0 for edge in (span.start, span.stop, core.start, core.stop))
        covered += range(span.start + core.start, span.start + core.stop)
    assert covered == list(range(-(-length // 8) * 8))


def test_the_default_tile_is_for_large_images_only(model: RewardModel) -> None:
    sides = [scoring.tile_side(model, tile) for tile in (None, 8, 15, 100)]
    assert sides == [scoring.TILE, 8, 8, 96]
    groups = list(scoring.same_size_groups([torch.zeros(3, 4, 4)] * 3 + [torch.zeros(3, 4, 9)] * 2, 8, 8))
    assert groups == [[0, 1, 2], [3], [4]]
