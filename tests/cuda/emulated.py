"""pytest plugin: the operators' "cpp" backend becomes the CUDA kernels of csrc/cuda, emulated on the CPU.

The library named by FINPERCEP_EMULATOR takes the place of finpercep._C, so that the tests in tests/ops run on them as they
are: `FINPERCEP_EMULATOR=build/emulator/_C.so pytest -p tests.cuda.emulated tests/ops/test_sde.py`.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import torch  # noqa: F401  (the library needs torch's)

spec = importlib.util.spec_from_file_location("finpercep._C", os.environ["FINPERCEP_EMULATOR"])
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["finpercep._C"] = module
