"""For pytest plugins that run the operators' tests on another library in the place of finpercep._C."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch  # noqa: F401  (a library needs torch's)


def use_library(path: str | Path) -> None:
    """Import the library at `path` as finpercep._C."""
    spec = importlib.util.spec_from_file_location("finpercep._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["finpercep._C"] = module


def keep_kernel_tests(
    config: pytest.Config, items: list[pytest.Item], fixtures: Collection[str], left_out: Collection[str]
) -> None:
    """Keep the tests with one of `fixtures` or a parameter "cpp", but those whose names hold a word of `left_out`."""

    def is_kept(item: pytest.Item) -> bool:
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        runs_kernels = set(fixtures) & set(getattr(item, "fixturenames", ())) or "cpp" in parameters
        return bool(runs_kernels) and not any(word in item.name for word in left_out)

    kept = [item for item in items if is_kept(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
