"""`python -m benchmarks`: run the suite, print the table, write `results/`. With options (`-k sde`): only print."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report import report


def main() -> int:
    folder = Path(__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "run.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(folder),
            "-q",
            "-rs",
            "--benchmark-columns=median,iqr,rounds",
            "--benchmark-quiet",
            f"--benchmark-json={path}",
            *sys.argv[1:],
        ]
        status = subprocess.run(command, cwd=folder.parent).returncode
        if path.exists() and path.stat().st_size:
            report(path, write=not sys.argv[1:])
    return status


if __name__ == "__main__":
    raise SystemExit(main())
