"""Counts what ran inside the tests of this folder: a test on the emulator is a whole suite, a build all its kernels."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = {"emulated": 0, "compiled": 0}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name in counts:
                counts[name] += int(value)
    if any(counts.values()):
        terminalreporter.write_line(
            f"CUDA kernels: {counts['emulated']} tests passed on the emulator, "
            f"{counts['compiled']} kernels compiled and their resources checked"
        )
