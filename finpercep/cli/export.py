"""``finpercep export``: a model as a package that runs without this package."""

from __future__ import annotations

import sys
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
    suffix = ".onnx" if format == "onnx" or (format is None and out.suffix == ".onnx") else ".pt2"
    if not out.suffix:
        out = out.with_suffix(suffix)
    elif out.suffix != suffix:
        print(f"{out}: expected a name that ends in {suffix} for the format {format or 'aoti'}", file=sys.stderr)
        raise typer.Exit(2)
    loaded = load_model(model, device, 0)
    with one_line_errors(2, ValueError, ImportError), one_line_errors(1, OSError, RuntimeError):
        from finpercep.engine.export import export_model

        path = export_model(loaded, out, format=format or ("onnx" if out.suffix == ".onnx" else "aoti"))
    stride = loaded.encoder.stride
    print(f"{path}: images (B,3,H,W), float32, contiguous, sides multiples of {stride} from {2 * stride} on")
