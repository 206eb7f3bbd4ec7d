"""`finpercep info`: why an extension is not in use."""

from __future__ import annotations

import pytest

from finpercep import ops
from finpercep.cli.info import operator_lines


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            "ModuleNotFoundError: no",
            "not built; with nvcc installed, FINPERCEP_CUDA_ARCHS=all builds it, even without a GPU",
        ),
        (
            "ImportError: this build of torch has no CUDA",
            "built, but it does not load: ImportError: this build of torch has no CUDA",
        ),
    ],
)
def test_a_cuda_extension_that_is_not_there(monkeypatch: pytest.MonkeyPatch, error: str, line: str) -> None:
    found = {**ops.backends(), "build_cuda": None, "load_error_cuda": error}
    monkeypatch.setattr(ops, "backends", lambda: found)
    assert dict(operator_lines())["cuda extension"] == line
