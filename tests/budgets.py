"""What the compiled kernels may use and what they promise: `budgets.json`, by backend and kernel.

- `registers`: the most of any variant, [with fp32 arithmetic, with fp64 arithmetic] for Triton;
- `wide_loads`, `wide_stores`: memory is read, or written, 128 bits at a time;
- `in_flight`: how many packs a thread asks for before it waits for the first.

`FINPERCEP_WRITE_BUDGET=1 pytest tests/cuda/test_compiled.py tests/kernels/test_compile.py` writes the file: registers
anew, promises for kernels that are not in it. Promises that are there stay; to take one back is an edit by hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("budgets.json")
Budget = dict[str, dict[str, Any]]  # kernel -> its row


def budget(backend: str, measure: Callable[[], Budget]) -> Budget:
    """The rows of a backend; where it is asked for, those that `measure` finds are written first."""
    budgets: dict[str, Budget] = json.loads(FILE.read_text())
    if os.environ.get("FINPERCEP_WRITE_BUDGET") == "1":
        before, rows = budgets[backend], measure()
        budgets[backend] = {
            name: {**before.get(name, row), "registers": row["registers"]} for name, row in rows.items()
        }
        write(budgets)
    return budgets[backend]


def write(budgets: Mapping[str, Budget]) -> None:
    """One line for each kernel."""
    parts = []
    for backend, rows in sorted(budgets.items()):
        lines = ",\n".join(f"    {json.dumps(kernel)}: {json.dumps(row)}" for kernel, row in sorted(rows.items()))
        parts.append(f"  {json.dumps(backend)}: {{\n{lines}\n  }}")
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n")
