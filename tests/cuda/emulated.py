"""pytest plugin: the operators' "cpp" backend becomes the CUDA kernels of csrc/cuda, emulated on the CPU.

The library named by FINPERCEP_EMULATOR takes the place of finpercep._C, so that the tests in tests/ops run on the
kernels as they are. Only tests of a kernel's results are run; what the C++ library alone promises is left out:

    FINPERCEP_EMULATOR=build/emulator/_C.so pytest -p tests.cuda.emulated tests/ops/test_sde.py
"""

from __future__ import annotations

import os

import pytest

from tests.stand_in import keep_kernel_tests, use_library

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

use_library(os.environ["FINPERCEP_EMULATOR"])

from tests.ops.conftest import cpp, poisoned  # noqa: E402, F401  (fixtures for emulated_cases.py)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    keep_kernel_tests(config, items, ["cpp"], LEFT_OUT)
