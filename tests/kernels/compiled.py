"""Compiles recorded launches for a GPU that need not be there, and reads back what the code uses."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from .cases import launches
from .launches import Launch

# Loads of 16 bytes or more, as PTX spells them
WIDE_LOAD = re.compile(r"ld\.global[\w.:]*\.(v4\.b32|v2\.b64|v8\.b32|v4\.b64)\b")


@dataclass(frozen=True)
class Compiled:
    kernel: str
    variant: str  # constants and types, for messages
    wide: bool  # computes in fp64
    registers: int
    stack: int  # bytes per thread; spilled registers live there
    local: int
    wide_loads: bool | None  # of 16 bytes; None with uint8, of which a thread rarely has 16 in a row


def tool(name: str) -> str | None:
    """A CUDA binary: from Triton's package, else from the system."""
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(bundled) if bundled.exists() else shutil.which(name)


@cache
def variants(operator: str) -> list[Launch]:
    """The launches of an operator that compile to different code."""
    return list({launch.key(): launch for launch in launches(operator)}.values())


def compile_variant(operator: str, index: int, capability: int) -> Compiled:
    return measure(variants(operator)[index], capability)


def measure(launch: Launch, capability: int) -> Compiled:
    code = triton.compile(launch.source(), target=GPUTarget("cuda", capability, 32), options=dict(launch.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        command = [str(tool("cuobjdump")), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    use = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", report))
    constants = {name: value for name, value in launch.arguments.items() if name.isupper()}
    types = sorted({str(t.dtype) for t in launch.arguments.values() if hasattr(t, "dtype")})
    return Compiled(
        launch.name,
        f"{constants} {types}",
        constants.get("A") == tl.float64,
        int(use["REG"]),
        int(use["STACK"]),
        int(use["LOCAL"]),
        None if "torch.uint8" in types else WIDE_LOAD.search(code.asm["ptx"]) is not None,
    )
