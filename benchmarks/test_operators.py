"""Time of every operator: eager reference, `torch.compile` of the reference, and the C++ operator.

The three executors of a case run one after the other on the same inputs. Before every round of a large case
the copy that serves as ceiling is timed, which also clears the caches. A round counts by its share of that copy's
speed, and the median share is what is compared: a machine that others share changes its speed for seconds at a
time, which a round and its copy feel alike. Small cases run warm and are compared by their times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch

from benchmarks.cases import CASES, Case, Outputs, Work, differentiate, ones_for
from finpercep import ops

EXECUTORS = ("eager", "compile", "cpp")
LARGE = 64 << 20  # bytes of traffic
ROUNDS_LARGE, ROUNDS_SMALL, WARMUP = 21, 300, 2


class Ceiling:
    """Copy of a 256 MB fp32 tensor: 512 MB of traffic."""

    def __init__(self) -> None:
        self.source = torch.rand(1 << 26)
        self.target = torch.empty_like(self.source)
        self.seconds: list[float] = []

    def measure(self) -> None:
        start = time.perf_counter()
        self.target.copy_(self.source)
        self.seconds.append(time.perf_counter() - start)

    def gbps(self) -> float:
        return 2 * self.source.nbytes / statistics.median(self.seconds) / 1e9

    def share(self, size: int, seconds: list[float]) -> float:
        """Median over rounds that moved `size` bytes of their speed over that of the copy just before each."""
        copies = self.seconds[-len(seconds) :]  # the earlier ones belong to the warm-up
        shares = [size / own / (2 * self.source.nbytes / copy) for own, copy in zip(seconds, copies, strict=True)]
        return statistics.median(shares)


@pytest.fixture(scope="module")
def copy() -> Ceiling:
    return Ceiling()


class Prepared:
    """The inputs of one group of cases and its three executors; one at a time is kept."""

    def __init__(self, case: Case) -> None:
        self.group = case.group
        torch.manual_seed(0)
        self.work: Work = case.make()

    @cache  # noqa: B019 - lives as long as the object, which is the point
    def executor(self, name: str) -> Callable[..., Outputs]:
        if name == "eager":
            return self.work.function("reference")
        if name == "compile":
            return torch.compile(self.work.function("reference"), fullgraph=True, dynamic=False)
        return self.work.function()  # the default backend is C++ here


_current: list[Prepared] = []


def prepared(case: Case) -> Prepared:
    if not _current or _current[0].group != case.group:
        _current.clear()
        torch._dynamo.reset()
        _current.append(Prepared(case))
    return _current[0]


def round_of(case: Case, ready: Prepared, executor: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """(what precedes a round untimed, what is timed)"""
    function, inputs = ready.executor(executor), ready.work.leaves(case.direction != "forward")
    if case.direction == "forward":
        return lambda: None, partial(function, *inputs)
    incoming = ones_for(function(*inputs))
    if case.direction == "training":
        return lambda: None, lambda: differentiate(function(*inputs), inputs, incoming)
    pending: list[Outputs] = []
    return lambda: pending.append(function(*inputs)), lambda: differentiate(pending.pop(), inputs, incoming)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operator(benchmark, copy: Ceiling, case: Case, executor: str) -> None:  # type: ignore[no-untyped-def]
    if executor == "cpp" and (reason := ops.backends()["available"]["cpp"]) is not True:
        pytest.skip(reason)
    ready = prepared(case)
    size = ready.work.traffic(case.direction)
    before, timed = round_of(case, ready, executor)
    large = size >= LARGE
    copy.seconds.clear()

    def setup() -> None:
        before()
        if large or len(copy.seconds) < ROUNDS_LARGE:
            copy.measure()

    rounds = ROUNDS_LARGE if large else ROUNDS_SMALL
    benchmark.pedantic(timed, setup=setup, rounds=rounds, warmup_rounds=WARMUP, iterations=1)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info.update(
        operator=case.operator,
        direction=case.direction,
        dtype=str(case.dtype).removeprefix("torch."),
        size=case.size,
        executor=executor,
        bytes=size,
        rounds=rounds,
        copy_gbps=copy.gbps(),
        gbps=size / seconds / 1e9,
        share_of_copy=copy.share(size, benchmark.stats.stats.data) if large else size / seconds / 1e9 / copy.gbps(),
    )
