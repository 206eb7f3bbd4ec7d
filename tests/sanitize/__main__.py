"""Build, then test the C++ operators on the sanitized library: `python -m tests.sanitize [options of pytest]`."""

from __future__ import annotations

import os
import sys
import time

from tests.sanitize import library

SUITES = ("tests/sanitize", "tests/ops", "tests/data/degradations", "tests/models")

start = time.perf_counter()
library.build()
print(f"built in {time.perf_counter() - start:.0f} s", flush=True)
# -s: the report of a sanitizer, which ends the process, would be lost in what pytest captures.
options = ["-p", "tests.sanitize.plugin", "-x", "-s", "--durations=5", *(sys.argv[1:] or SUITES)]
os.execve(sys.executable, [sys.executable, "-m", "pytest", *options], library.environment())
