"""Every Triton kernel, in the variants in use, compiled for three generations of GPUs with none at hand."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.cases import FAMILIES as OPERATORS
from finpercep import ops

from .cases import FAMILIES
from .compiled import Compiled, compile_variant, measure, tool, variants

CAPABILITIES = (80, 90, 100)
WORKERS = 2

# Registers per thread that any variant may use: (fp32 arithmetic, fp64 arithmetic). What the compiler needed when this
# was written, rounded up by a tenth; 65536 / (threads · registers) programs fit a multiprocessor.
REGISTERS = {
    "advantage_divide_kernel": (32, 32),
    "advantage_finish_kernel": (56, 56),
    "advantage_ids_kernel": (255, 216),
    "advantage_rows_kernel": (144, 224),
    "grpo_bwd_kernel": (48, 72),
    "grpo_finish_kernel": (64, 64),
    "grpo_fwd_kernel": (136, 224),
    "modulate_bwd_kernel": (80, 144),
    "modulate_fwd_kernel": (160, 112),
    "modulate_map_bwd_kernel": (104, 136),
    "modulate_pool_kernel": (48, 56),
    "sde_bwd_kernel": (56, 64),
    "sde_finish_kernel": (56, 56),
    "sde_fwd_kernel": (64, 144),
    "target_bounds_kernel": (40, 48),
    "target_columns_bwd_kernel": (160, 192),
    "target_cosine_kernel": (72, 112),
    "target_factors_bwd_kernel": (40, 48),
    "target_feature_bwd_kernel": (56, 72),
    "target_image_bwd_kernel": (64, 104),
    "target_raw_kernel": (112, 120),
    "target_rescale_kernel": (48, 80),
    "target_shares_kernel": (40, 40),
    "target_sums_kernel": (48, 72),
    "target_ties_kernel": (40, 40),
}

# Promise loads of 16 bytes: all that read images, features or maps row by row. Bytes and halves fill 16 bytes only
# where a thread has 16 or 8 of them in a row, so uint8 images are left out.
WIDE = {
    "modulate_fwd_kernel",
    "modulate_pool_kernel",
    "target_cosine_kernel",
    "target_raw_kernel",
    "target_rescale_kernel",
    "target_sums_kernel",
    "target_image_bwd_kernel",
    "target_feature_bwd_kernel",
    "grpo_fwd_kernel",
    "grpo_bwd_kernel",
    "sde_fwd_kernel",
    "sde_bwd_kernel",
    "modulate_bwd_kernel",
}

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


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_resources(compiled: Futures, summary: list[str], family: str, capability: int) -> None:
    codes = [future.result() for future in compiled[family, capability]]
    spilled = [code for code in codes if code.stack or code.local]
    assert not spilled
    hungry = [code for code in codes if code.registers > REGISTERS[code.kernel][code.wide]]
    assert not hungry
    narrow = [c for c in codes if c.kernel in WIDE and not c.wide_loads and "torch.uint8" not in c.variant]
    assert not narrow
    summary.append(
        f"compiled: {family}, sm_{capability}: {len(codes)} variants of {len({c.kernel for c in codes})} kernels, "
        f"at most {max(c.registers for c in codes)} registers, nothing spilled"
    )


def test_every_kernel_is_among_them() -> None:
    modules = {getattr(ops, operator).__module__.rpartition(".")[2] for operator in OPERATORS}
    assert set(FAMILIES) == set(OPERATORS)
    defined = {
        name
        for module in modules
        for name in vars(importlib.import_module(f"finpercep.kernels.{module}"))
        if name.endswith("_kernel")
    }
    assert {launch.name for family in FAMILIES for launch in variants(family)} == defined == set(REGISTERS)


def test_the_check_can_fail() -> None:
    """A tile that is far too large for its threads spills, and shows."""
    launch = next(one for one in variants("modulate") if one.arguments.get("grad_d") is not None)
    code = measure(replace(launch, arguments={**launch.arguments, "BLOCK_N": 128, "BLOCK_C": 256}), 90)
    assert code.stack or code.local
