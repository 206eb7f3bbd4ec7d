"""``finpercep export``: a model as a package that runs without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finpercep.cli.common import DeviceOption, load_model, one_line_errors


def export(
    model: Annotated[str, typer.Argument(help="Name of a model, a folder, or a Hugging Face Hub id.")],
    out: Annotated[Path, typer.Argument(help="The package: NAME.pt2, or NAME.onnx.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="aoti (machine code for this device, by AOTInductor), program (torch.export) or onnx. Default: onnx "
            "for NAME.onnx, else aoti.",
        ),
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Write score and map of a model as a package for C++, or for Python without this package.

    It takes images (B,3,H,W), contiguous, float32 in [0, 1], of any batch and of any size whose sides are multiples of
    the model's stride, and gives score (B,) and map (B,1,H,W). Machine code does not check what it is given.
    """
    from finpercep.engine.export import check_name, export_model

    format = format or ("onnx" if out.suffix == ".onnx" else "aoti")
    with one_line_errors(2, ValueError):
        out = check_name(out, format)  # before anything is loaded
    loaded = load_model(model, device, 0)
    with one_line_errors(2, ValueError, ImportError), one_line_errors(1, OSError, RuntimeError):
        path = export_model(loaded, out, format=format)
    stride = loaded.encoder.stride
    print(f"{path}: images (B,3,H,W), float32, contiguous, sides multiples of {stride} from {2 * stride} on")
