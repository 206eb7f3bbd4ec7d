"""The sanitized library: its place, its build, and what has to be loaded before Python for it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "build" / "sanitize" / "finpercep"


def find() -> Path:
    """The library that `build` made. Raises FileNotFoundError."""
    libraries = sorted(FOLDER.glob("_C.*"))
    if not libraries:
        raise FileNotFoundError(f"{FOLDER}: expected the library that `make sanitize` builds")
    return libraries[0]


def build() -> None:
    """Compile what changed; the library that is installed stays as it is."""
    environment = {**os.environ, "FINPERCEP_SANITIZE": "1", "FINPERCEP_REQUIRE_EXT": "1"}
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext"], cwd=REPOSITORY, env=environment, check=True)


def environment() -> dict[str, str]:
    """Of a Python that loads the library: libasan first, and libstdc++, whose exceptions it watches."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    names = ("libasan.so", "libstdc++.so.6")
    found = [
        subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in names
    ]
    for name, path in zip(names, found, strict=True):
        if not os.path.isabs(path):
            raise FileNotFoundError(f"{name}: expected beside {compiler[0]}; install GCC's sanitizer libraries")
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": str(REPOSITORY),
    }
