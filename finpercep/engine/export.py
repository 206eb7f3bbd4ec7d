"""Models as packages that run without this package: an exported program, machine code by AOTInductor, or ONNX.

What is exported is `score (B,), map (B,1,H,W) = f(images (B,3,H,W))`, images float32 in [0, 1] (values of 8-bit files),
batch and size dynamic; sides are multiples of the encoder's stride. Eq. 7 is exported by its definition, since the
operator lives in a library of this package.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from finpercep.io.files import atomic_write
from finpercep.models import head
from finpercep.models.reward_model import RewardModel
from finpercep.ops.modulate import modulate_reference

__all__ = ["FORMATS", "export_model"]

FORMATS = ("aoti", "program", "onnx")
"""aoti: machine code for the device, `torch._inductor.aoti_load_package`; program: `torch.export.load`; onnx: any
runtime of ONNX."""
MOST_SIDE = 1 << 14
ONNX_OPSET = 20
_exporting = threading.Lock()


class _ScoreAndMap(nn.Module):
    """The model as a function of tensors to tensors, for sides that need no padding."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        pooled, degradation = self.model.pool_and_map(images)
        score = self.model.head.regress(pooled)
        return score if degradation is None else (score, degradation)


def export_model(model: RewardModel, path: str | Path, *, format: str = "aoti") -> Path:
    """Write a model as a package.

    Args:
        model: in evaluation mode, in the type and on the device that the package is for.
        path: the file; `.pt2` for "aoti" and "program", `.onnx` for "onnx", which is added where it has no suffix.
        format: one of `FORMATS`.

    Returns:
        The path.

    Raises:
        ValueError: another format, a model in training, or a name that does not end as its format does.
        ImportError: "onnx" without the extra `export`.
        RuntimeError: torch cannot export this model; names what it met.
    """
    path = check_name(Path(path), format)
    if any(part.training for part in model.modules()):
        raise ValueError("model: expected one in evaluation mode, got one in training")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, _by_definition(), torch.no_grad():
        made = Path(scratch) / path.name
        program = exported(model)
        if format == "program":
            torch.export.save(program, made)
        elif format == "aoti":
            torch._inductor.aoti_compile_and_package(program, package_path=str(made))
        else:
            _write_onnx(program, made, model.has_map)
        with atomic_write(path) as file:
            file.write(made.read_bytes())
    return path


def check_name(path: Path, format: str) -> Path:
    """The path, with the suffix of the format where it has none.

    Raises:
        ValueError: another format, no name, or another suffix.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected {', '.join(FORMATS)}, got {format!r}")
    suffix = ".onnx" if format == "onnx" else ".pt2"
    if path.name in ("", ".."):
        raise ValueError(f"{path}: expected the name of a file, got a folder")
    if path.suffix not in ("", suffix):
        raise ValueError(f"{path}: expected a name that ends in {suffix} for the format {format}")
    return path.with_suffix(suffix)


def exported(model: RewardModel) -> torch.export.ExportedProgram:
    """The program of score and map: batch from 1 on, sides in multiples of the stride."""
    place = next(model.parameters())
    stride = model.encoder.stride
    least, most = 2, MOST_SIDE // stride
    rows, columns = (torch.export.Dim(name, min=least, max=most) for name in ("rows", "columns"))
    example = torch.rand(2, 3, 4 * stride, 5 * stride, device=place.device)
    shapes = ({0: torch.export.Dim("batch", min=1, max=1 << 12), 2: stride * rows, 3: stride * columns},)
    return torch.export.export(_ScoreAndMap(model), (example,), dynamic_shapes=shapes)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, has_map: bool) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"onnx needs the packages of the extra: pip install 'finpercep[export]' ({error})") from error
    names = ["score", "map"] if has_map else ["score"]
    torch.onnx.export(
        program, f=str(path), input_names=["images"], output_names=names, dynamo=True, external_data=False,
        opset_version=ONNX_OPSET, verbose=False,
    )  # fmt: skip


@contextmanager
def _by_definition() -> Iterator[None]:
    """Eq. 7 in plain operators while it is traced; one export at a time."""
    with _exporting:  # of two, the one that ends last would put the other's operators back, for good
        before = head.ops
        head.ops = SimpleNamespace(modulate=modulate_reference)  # type: ignore[assignment]
        try:
            yield
        finally:
            head.ops = before
