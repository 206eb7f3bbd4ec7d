"""The sanitizers watch the kernels: a read past the end of what a tensor claims to hold ends the process, by name."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import Distribution

from tests.sanitize import library

pytestmark = pytest.mark.slow

# A tensor of 4096 numbers over memory for 1024.
PAST_THE_END = """
import ctypes, sys
import tests.sanitize.plugin
import numpy, torch
from finpercep import _C
_C.set_simd_level(sys.argv[1])
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
memory = ctypes.cast(libc.malloc(ctypes.c_size_t(4 * 1024)), ctypes.POINTER(ctypes.c_float))
ctypes.memset(memory, 0, 4 * 1024)
numbers = torch.from_numpy(numpy.ctypeslib.as_array(memory, (4096,)))
other = torch.zeros(4096)
print("reads", torch.ops.finpercep.grpo_loss(numbers[:1024], other[:1024], other[:1024], None, 0.1, 0.1, 0.0)[0].item())
torch.ops.finpercep.grpo_loss(numbers, other, other, None, 0.1, 0.1, 0.0)
print("unseen")
"""


@pytest.fixture
def sanitized() -> str:
    try:
        return str(library.find())
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_a_read_past_the_end_is_reported(sanitized: str, level: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PAST_THE_END, level],
        capture_output=True,
        text=True,
        cwd=library.REPOSITORY,
        env=library.environment(),
    )
    if "FINPERCEP_SIMD: expected one of" in result.stderr:
        pytest.skip(f"this CPU lacks {level}")
    assert "reads 0.0" in result.stdout.replace("-0.0", "0.0"), result.stderr
    assert "unseen" not in result.stdout
    assert result.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr
    assert f"finpercep::{level}::" in result.stderr


def test_the_installed_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sanitized build goes to a place of its own, without CUDA, whatever a command says of the place."""
    spec = importlib.util.spec_from_file_location("finpercep_setup", library.REPOSITORY / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, setup)
    spec.loader.exec_module(setup)
    for sanitize in (False, True):
        monkeypatch.setenv("FINPERCEP_SANITIZE", str(int(sanitize)))
        monkeypatch.delenv("FINPERCEP_NO_EXT", raising=False)
        monkeypatch.delenv("FINPERCEP_NO_CUDA", raising=False)
        names = [extension.name for extension in setup.extensions()]
        assert names == (["finpercep._C"] if sanitize else ["finpercep._C", "finpercep._C_cuda"])
        command = setup.BuildExtension(Distribution({"ext_modules": setup.extensions()}))
        command.inplace = True
        command.finalize_options()
        assert bool(command.inplace) is not sanitize
        assert (Path(command.build_lib) == Path("build", "sanitize")) is sanitize
