"""One build, another torch: every compiled operator against its reference, in this interpreter.

Run by test_build.py with the interpreter that FINPERCEP_OTHER_PYTHON names; needs only torch and numpy there:
    FINPERCEP_OTHER_PYTHON=/path/to/other/bin/python pytest tests/ops/test_build.py -k other_torch
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from benchmarks.cases import CALLS, Work, differentiate, ones_for
from finpercep import ops


def results(work: Work, backend: str) -> list[Tensor]:
    """Values and gradients."""
    leaves = work.leaves(True)
    outputs = work.function(backend)(*leaves)
    gradients = differentiate(outputs, leaves, ones_for(outputs)) if work.differentiable else ()
    return [*outputs, *gradients]


def main() -> None:
    torch.manual_seed(0)
    info = ops.backends()
    assert info["available"]["cpp"] is True, info["available"]["cpp"]
    print(f"torch {torch.__version__}, built with {info['build']['torch_built_with']}, {info['build']['simd']}")
    for call in CALLS:
        work = call.make(torch.float64)
        pairs = list(zip(results(work, "cpp"), results(work, "reference"), strict=True))
        for ours, expected in pairs:
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
        print(f"{call}: {len(pairs)} tensors agree")
    print("all operators agree")


if __name__ == "__main__":
    main()
