"""pytest plugin: the library that FINPERCEP_SANITIZE=1 builds takes the place of finpercep._C.

Only tests that run the C++ operators are run, and of those not what compiles graphs or differentiates numerically: that
calls the same kernels once more and takes minutes here.
"""

from __future__ import annotations

import pytest

from tests.sanitize.library import find
from tests.stand_in import keep_kernel_tests, use_library

LEFT_OUT = ("opcheck", "compile", "export", "gradcheck", "no_simd_code_leaks", "environment", "other_torch")

use_library(find())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    keep_kernel_tests(config, items, ["cpp", "simd", "sanitized"], LEFT_OUT)
