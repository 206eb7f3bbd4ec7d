"""What the compiled kernels may use and what they promise: `budgets.json`, by backend and kernel.

- `registers`: the most of any variant, [with fp32 arithmetic, with fp64 arithmetic] for Triton;
- `wide_loads`, `wide_stores`: memory is read, or written, 128 bits at a time;
- `in_flight`: how many packs a thread asks for before it waits for the first.

`FINPERCEP_WRITE_BUDGET=1 pytest tests/cuda/test_compiled.py tests/kernels/test_compile.py` writes the file: rows of
kernels that are new, and registers where a kernel needs more than it has. To ask for less of either is an edit by hand,
and so is to take back a promise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("budgets.json")
Budget = dict[str, dict[str, Any]]  # kernel -> its row


def budget(backend: str, measure: Callable[[], Budget], allow: Callable[[int], int] = int) -> Budget:
    """The rows of a backend; where it is asked for, they are first brought to what `measure` finds.

    `allow` is how many registers are written where that many are needed.
    """
    budgets: dict[str, Budget] = json.loads(FILE.read_text())
    if os.environ.get("FINPERCEP_WRITE_BUDGET") == "1":
        before = budgets[backend]
        budgets[backend] = {kernel: _row(before.get(kernel), row, allow) for kernel, row in measure().items()}
        write(budgets)
    return budgets[backend]


def _row(before: dict[str, Any] | None, needed: dict[str, Any], allow: Callable[[int], int]) -> dict[str, Any]:
    row, many = before or needed, isinstance(needed["registers"], list)
    had, need = (one["registers"] if many else [one["registers"]] for one in (row, needed))
    registers = [old if before and new <= old else allow(new) for old, new in zip(had, need, strict=True)]
    return {**row, "registers": registers if many else registers[0]}


def write(budgets: Mapping[str, Budget]) -> None:
    """One line for each kernel."""
    parts = []
    for backend, rows in sorted(budgets.items()):
        lines = ",\n".join(f"    {json.dumps(kernel)}: {json.dumps(row)}" for kernel, row in sorted(rows.items()))
        parts.append(f"  {json.dumps(backend)}: {{\n{lines}\n  }}")
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n")
