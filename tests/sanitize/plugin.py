"""pytest plugin: the library that FINPERCEP_SANITIZE=1 builds takes the place of finpercep._C.

Only tests that run the C++ operators are run, and of those not what compiles graphs or differentiates numerically: that
calls the same kernels once more and takes minutes here.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch  # noqa: F401  (the library needs torch's)

from tests.sanitize.library import find

LEFT_OUT = ("opcheck", "compile", "export", "gradcheck", "no_simd_code_leaks", "environment", "other_torch")

spec = importlib.util.spec_from_file_location("finpercep._C", find())
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["finpercep._C"] = module


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def is_about_kernels(item: pytest.Item) -> bool:
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        ours = {"cpp", "simd", "sanitized"} & set(getattr(item, "fixturenames", ())) or "cpp" in parameters
        return bool(ours) and not any(word in item.name for word in LEFT_OUT)

    config.hook.pytest_deselected(items=[item for item in items if not is_about_kernels(item)])
    items[:] = [item for item in items if is_about_kernels(item)]
