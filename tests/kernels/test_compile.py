"""Every Triton kernel, in the variants in use, compiled for three generations of GPUs with none at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.cases import FAMILIES
from finpercep import kernels
from tests.budgets import Budget, budget

from .cases import kernels_of
from .compiled import Compiled, compile_variant, measure, tool, variants

CAPABILITIES = (80, 90, 100)
WORKERS = 2

pytestmark = pytest.mark.skipif(
    tool("ptxas") is None or tool("cuobjdump") is None,
    reason="neither Triton's package nor the system has ptxas and cuobjdump",
)

Futures = dict[tuple[str, int], list[Future[Compiled]]]


@pytest.fixture(scope="module")
def compiled() -> Iterator[Futures]:
    """All of it at once, in processes of their own."""
    pool = ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"))
    yield {
        (family, capability): [
            pool.submit(compile_variant, family, i, capability) for i in range(len(variants(family)))
        ]
        for capability in CAPABILITIES
        for family in FAMILIES
    }
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def allowed(compiled: Futures) -> Budget:
    """The rows of `tests/budgets.json`: registers are what the compiler needed, and a tenth more for other versions."""
    return budget(
        "triton",
        lambda: measured([one.result() for futures in compiled.values() for one in futures]),
        lambda registers: min(255, 8 * math.ceil(1.1 * registers / 8)),
    )


def measured(codes: list[Compiled]) -> Budget:
    """What all variants of a kernel need, and what all of them can promise."""
    rows: Budget = {}
    for kernel in {code.kernel for code in codes}:
        ours = [code for code in codes if code.kernel == kernel]
        most = [max((code.registers for code in ours if code.wide == wide), default=0) for wide in (False, True)]
        rows[kernel] = {"registers": most}
        if all(found := [code.wide_loads for code in ours if code.wide_loads is not None]) and found:
            rows[kernel]["wide_loads"] = True
    return rows


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_resources(compiled: Futures, allowed: Budget, summary: list[str], family: str, capability: int) -> None:
    codes = [future.result() for future in compiled[family, capability]]
    spilled = [code for code in codes if code.stack or code.local]
    assert not spilled
    hungry = [code for code in codes if code.registers > allowed[code.kernel]["registers"][code.wide]]
    assert not hungry
    narrow = [code for code in codes if allowed[code.kernel].get("wide_loads") and code.wide_loads is False]
    assert not narrow
    summary.append(
        f"compiled: {family}, sm_{capability}: {len(codes)} variants of {len({c.kernel for c in codes})} kernels, "
        f"at most {max(c.registers for c in codes)} registers, nothing spilled"
    )


def test_every_kernel_is_among_them(allowed: Budget) -> None:
    """What the files of kernels/ define, what is launched, and what has a budget."""
    files = sorted(Path(str(kernels.__file__)).parent.glob("[!_]*.py"))
    assert {file.stem for file in files} == {kernels_of(operator).__name__.rpartition(".")[2] for operator in FAMILIES}
    defined = {name for operator in FAMILIES for name in vars(kernels_of(operator)) if name.endswith("_kernel")}
    assert {launch.name for operator in FAMILIES for launch in variants(operator)} == defined == set(allowed)


def test_the_check_can_fail() -> None:
    """A tile that is far too large for its threads spills, and shows."""
    launch = next(one for one in variants("modulate") if one.arguments.get("grad_d") is not None)
    code = measure(replace(launch, arguments={**launch.arguments, "BLOCK_N": 128, "BLOCK_C": 256}), 90)
    assert code.stack or code.local
