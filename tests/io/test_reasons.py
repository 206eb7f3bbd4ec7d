from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finpercep.io.reasons import one_line


def test_one_line_of_any_error() -> None:
    assert one_line(ValueError("a\n\tb  c ")) == "a b c"
    assert one_line(EOFError()) == "EOFError"
    assert one_line(RuntimeError(" \n")) == "RuntimeError"
    assert one_line(RuntimeError("\x1b[1mbold\x1b[0m")) == "bold"
    assert one_line(ValueError("x" * 500)) == "x" * 299 + "…"
    assert one_line(ValueError("abcdef"), 4) == "abc…"
    assert one_line("already\ntext") == "already text"


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, ("nowhere",))


def test_torchs_advice_to_run_foreign_code_is_left_out(tmp_path: Path) -> None:
    torch.save({"a": Payload()}, tmp_path / "x.bin")
    with pytest.raises(Exception, match="weights_only") as error:
        torch.load(tmp_path / "x.bin", weights_only=True)
    reason = one_line(error.value)
    assert "Unsupported global" in reason
    assert not any(word in reason for word in ("weights_only", "torch.load", "trust", "False"))
    advice = (
        "Weights only load failed. This file can still be loaded, to do so you have two options, \x1b[1mdo those steps "
        "only if you trust the source of the checkpoint\x1b[0m. \n\t(1) In PyTorch 2.6, we changed the default value "
        "of the `weights_only` argument in `torch.load` from `False` to `True`. Re-running `torch.load` with "
        "`weights_only` set to `False` will likely succeed, but it can result in arbitrary code execution. Do it only "
        "if you got the file from a trusted source.\n\t(2) Alternatively, to load with `weights_only=True` please "
        "check the recommended steps in the following error message.\n\t"
        "WeightsUnpickler error: Unsupported operand 149\n"
        "\nCheck the documentation of torch.load to learn more about types accepted by default with weights_only "
        "https://pytorch.org/docs/stable/generated/torch.load.html."
    )
    assert one_line(advice) == "Weights only load failed. WeightsUnpickler error: Unsupported operand 149"
