"""pytest plugin: the operators' "cpp" backend becomes the CUDA kernels of csrc/cuda, emulated on the CPU.

The library named by FINPERCEP_EMULATOR takes the place of finpercep._C, so that the tests in tests/ops run on the
kernels as they are. Only tests of a kernel's results are run; what the C++ library alone promises is left out:

    FINPERCEP_EMULATOR=build/emulator/_C.so pytest -p tests.cuda.emulated tests/ops/test_sde.py
"""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import torch  # noqa: F401  (the library needs torch's)

# What is about registration or the C++ library, what takes minutes here (emulated_cases.py has many blocks too), and
# "baseline": of the schedules in the place of SIMD levels, the order of threads that hides missing barriers best.
LEFT_OUT = (
    "opcheck",
    "compile",
    "export",
    "number_of_threads",
    "exponential_is_accurate",
    "conversions",
    "streamed",
    "gradcheck[percentile",
    "gradcheck[minmax-False",
    "baseline",
)

spec = importlib.util.spec_from_file_location("finpercep._C", os.environ["FINPERCEP_EMULATOR"])
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["finpercep._C"] = module

from tests.ops.conftest import cpp, poisoned  # noqa: E402, F401  (fixtures for emulated_cases.py)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def is_about_kernels(item: pytest.Item) -> bool:
        fixtures = set(getattr(item, "fixturenames", ()))
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        ours = "cpp" in fixtures or "cpp" in parameters
        return ours and not any(word in item.name for word in LEFT_OUT)

    config.hook.pytest_deselected(items=[item for item in items if not is_about_kernels(item)])
    items[:] = [item for item in items if is_about_kernels(item)]
