"""Packages give the model's values for other batches and sizes than they were made with, without this package."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from finpercep import ops
from finpercep.cli.main import app
from finpercep.engine import export as export_module
from finpercep.engine.export import export_model
from finpercep.models import RewardModel, head
from tests.models.conftest import VIT


def images(shape: tuple[int, ...]) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255).round() / 255


def shapes(model: RewardModel) -> tuple[tuple[int, ...], ...]:
    """The least side, and another batch."""
    stride = model.encoder.stride
    return (1, 3, 2 * stride, 9 * stride), (3, 3, 8 * stride, 3 * stride)


def assert_same(model: RewardModel, given: Tensor, score: Tensor, degradation: Tensor) -> None:
    with torch.no_grad():
        expected = model(given)
    torch.testing.assert_close(score, expected.score, rtol=0, atol=1e-6)
    torch.testing.assert_close(degradation, expected.map, rtol=0, atol=2e-6)


def assert_same_elsewhere(model: RewardModel, load: str, folder: Path) -> None:
    """What a process gives that cannot import this package, with what `load`, an expression, loads in `folder`."""
    given = [images(shape) for shape in shapes(model)]
    torch.save(given, folder / "in.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['finpercep'] = None\n"
        f"f = {load}\n"
        "torch.save([f(x) for x in torch.load('in.pt')], 'out.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    for one, (score, degradation) in zip(given, torch.load(folder / "out.pt"), strict=True):
        assert_same(model, one, score, degradation)


@pytest.fixture(scope="module", params=["conv", "efficientnet-lite0+energy", "vit"])
def model(request: pytest.FixtureRequest) -> RewardModel:
    """Each kind of encoder with random weights, none of them zeros."""
    torch.manual_seed(0)
    encoder = {"conv": {"type": "conv", "channels": [8, 16], "depths": [1, 1]}, "vit": VIT}
    model = RewardModel(encoder.get(request.param, {"type": request.param}), {"width": "light"}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.slow
def test_program_runs_without_this_package(model: RewardModel, tmp_path: Path) -> None:
    export_model(model, tmp_path / "new" / "model.pt2", format="program")
    assert head.ops is ops  # tracing by the definition is over
    assert_same_elsewhere(model, "torch.export.load('new/model.pt2').module()", tmp_path)


@pytest.mark.slow
def test_onnx_gives_equal_outputs(model: RewardModel, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'finpercep[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'finpercep[export]'")
    model.save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "model"), str(tmp_path / "model.onnx")])
    assert result.exit_code == 0, result.output
    stride = model.encoder.stride
    expected = f"model.onnx: images (B,3,H,W), float32, contiguous, sides multiples of {stride} from {2 * stride} on"
    assert result.stdout.splitlines()[-1].endswith(expected)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["score", "map"]
    for shape in shapes(model):
        score, degradation = map(torch.from_numpy, session.run(None, {"images": images(shape).numpy()}))
        assert_same(model, images(shape), score, degradation)


@pytest.mark.compile
def test_machine_code_runs_without_this_package(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RewardModel({"type": "conv", "channels": [4], "depths": [1]}, {"width": 4}).eval()
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):  # only to be quick
        export_model(model, tmp_path / "model.pt2")
    assert_same_elsewhere(model, "torch._inductor.aoti_load_package('model.pt2')", tmp_path)


def test_refused(small_model: RewardModel, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^format: expected aoti, program, onnx, got 'jit'$"):
        export_model(small_model, tmp_path / "a.pt2", format="jit")
    with pytest.raises(ValueError, match=r"a\.bin: expected a name that ends in \.pt2 for the format aoti$"):
        export_model(small_model, tmp_path / "a.bin")
    training = RewardModel({"type": "conv", "channels": [8, 16], "depths": [1, 1]}).train()
    with pytest.raises(ValueError, match=r"^model: expected one in evaluation mode, got one in training$"):
        export_model(training, tmp_path / "a.pt2")
    result = CliRunner().invoke(app, ["export", str(model_folder), str(tmp_path / "a.onnx"), "--format", "aoti"])
    assert result.exit_code == 2
    assert result.stderr.endswith("a.onnx: expected a name that ends in .pt2 for the format aoti\n")
    assert list(tmp_path.iterdir()) == []
    result = CliRunner().invoke(app, ["export", str(model_folder), str(tmp_path / "a"), "--format", "program"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


def test_exports_at_once_leave_the_operator_in_place() -> None:
    before, entered, first = head.ops, threading.Event(), export_module._by_definition()

    def second() -> None:
        with export_module._by_definition():
            entered.set()
            first_ended.wait(20)

    first_ended, thread = threading.Event(), threading.Thread(target=second)
    with first:
        thread.start()
        entered.wait(0.2)
    first_ended.set()
    thread.join()
    assert entered.is_set()
    assert head.ops is before


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}: expected the name of a file, got a folder$"):
        export_module.check_name(Path(name), "aoti")
