"""Every benchmark can be started: what it takes from the package is there."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks

MODULES = sorted(module.name for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks."))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith(("__main__", "conftest"))])
def test_a_benchmark_imports(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("finpercep", "benchmarks"):
            raise
        pytest.skip(f"{error.name} is not installed")
