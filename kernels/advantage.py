"""group_advantage, Eq. 5. Up to `ADVANTAGE_ONE_LAUNCH` rewards it is one launch of one program.

Groups of equal size are the rows of a tile. Ids are sorted, as integers, and every statistic is a scan over runs of
equal ids, in a fixed order. Beyond one program, rows (found by `torch.sort` for ids) are spread over programs, and a
second launch adds up the statistics; `scale="batch"` needs a third, which divides.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from finpercep.kernels import _config as config
from finpercep.kernels._common import accumulation_type, divide, is_finite, load, root, triton_type

GROUP, BATCH, NONE = (tl.constexpr(i) for i in range(3))  # the indices in finpercep.ops.advantage.SCALES
TOTALS = 8  # of one program, in fp64: see _store_totals


@triton.jit
def _std(squares, count, varied, correction, A: tl.constexpr):
    """0 for groups whose rewards are equal up to the resolution."""
    room = tl.maximum(count - correction, 1).to(A)
    return tl.where(varied, root(divide(squares, room)), 0.0)


@triton.jit
def _varied(low, high, resolution, A: tl.constexpr):
    """Whether the range is more than the resolution; not where nothing is finite, low being inf and high -inf."""
    largest = tl.maximum(tl.abs(low), tl.abs(high))
    return high - low > tl.full((), resolution, A) * largest


@triton.jit
def _scaled(deviation, divisor, keep, clip, A: tl.constexpr):
    """deviation / divisor where kept, else 0; limited to ±clip."""
    divisor = tl.where(divisor > 0, divisor, 1.0)
    value = tl.where(keep, divide(deviation, tl.broadcast_to(divisor, deviation.shape)), 0.0)
    limit = tl.full((), clip, A)
    return tl.where(value > limit, limit, tl.where(value < -limit, -limit, value))


@triton.jit
def _write_stats(counts, moments, groups, zero, single, absent, mean, std, comparable, A: tl.constexpr):
    """Counts are int64; mean and std (a sum over groups) are fp64."""
    tl.store(counts + 0, groups)
    tl.store(counts + 1, zero)
    tl.store(counts + 2, single)
    tl.store(counts + 3, absent)
    tl.store(moments + 0, mean.to(A))
    tl.store(moments + 1, (std / tl.maximum(comparable, 1).to(tl.float64)).to(A))


@triton.jit
def _batch_divisor(squares, finite, correction, eps):
    """Standard deviation of all rewards plus eps, in fp64."""
    return tl.sqrt(squares / tl.maximum(finite - correction, 1).to(tl.float64)) + eps


# ---- rows -----------------------------------------------------------------------------------------------------------


@triton.jit
def _members(rewards, order, begin, length, start, A: tl.constexpr, BLOCK_S: tl.constexpr):
    """(position, reward or 0, whether it is finite) of one block of members of each row's group."""
    member = start + tl.arange(0, BLOCK_S)
    inside = member[None, :] < length[:, None]
    at = begin[:, None] + member[None, :]
    if order is not None:
        at = tl.load(order + at, mask=inside, other=0)
    reward = load(rewards + at, inside, A)
    known = inside & is_finite(reward)
    return at, tl.where(known, reward, 0.0), known, inside


@triton.jit
def advantage_rows_kernel(
    rewards,  # [count]
    order,
    begins,  # ids: positions ordered by group; [groups + 1] where each group begins. Else None
    advantages,  # [count]; with totals and scale "batch": not yet divided
    counts,
    moments,  # [4], [2]
    totals,  # [programs, 8] fp64, or None: then this is the only program
    groups,
    group_size,
    eps: tl.float64,
    correction,
    resolution: tl.float64,
    clip: tl.float64,
    SCALE: tl.constexpr,
    A: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)
    valid = group < groups
    if begins is None:
        begin = group * group_size
        length = tl.where(valid, group_size, 0).to(tl.int32)
        longest = group_size
    else:
        begin = tl.load(begins + group, mask=valid, other=0)
        length = (tl.load(begins + group + 1, mask=valid, other=0) - begin).to(tl.int32)
        longest = tl.max(length, 0)
    exists = length > 0

    finite, total = tl.zeros([BLOCK_G, BLOCK_S], tl.int32), tl.zeros([BLOCK_G, BLOCK_S], A)
    low, high = tl.full([BLOCK_G, BLOCK_S], float("inf"), A), tl.full([BLOCK_G, BLOCK_S], float("-inf"), A)
    for start in range(0, longest, BLOCK_S):
        _, reward, known, _ = _members(rewards, order, begin, length, start, A, BLOCK_S)
        finite += known.to(tl.int32)
        total += reward
        low = tl.where(known & (reward < low), reward, low)
        high = tl.where(known & (reward > high), reward, high)
    count = tl.sum(finite, 1)
    sums = tl.sum(total, 1)
    inverse = divide(tl.full([BLOCK_G], 1.0, A), tl.maximum(count, 1).to(A))
    mean = sums * inverse
    varied = _varied(tl.min(low, 1), tl.max(high, 1), resolution, A)
    spread, left = tl.zeros([BLOCK_G, BLOCK_S], A), tl.zeros([BLOCK_G], A)
    for start in range(0, longest, BLOCK_S):
        _, reward, known, _ = _members(rewards, order, begin, length, start, A, BLOCK_S)
        deviation = tl.where(known, reward - mean[:, None], 0.0)
        spread += deviation * deviation
        left += tl.sum(deviation, 1)
    # The mean is rounded: what is left of the deviations would be the sum of the advantages.
    rest = left * inverse
    squares = tl.maximum(tl.sum(spread, 1) - left * rest, 0.0)  # of what does not vary, too: scale batch counts all
    std = _std(squares, count, varied, correction, A)

    comparable = count >= 2
    n_groups = tl.sum(exists.to(tl.int64), 0)
    n_zero = tl.sum((comparable & (varied == 0)).to(tl.int64), 0)
    n_single = tl.sum((exists & (comparable == 0)).to(tl.int64), 0)
    n_finite, n_all = tl.sum(count.to(tl.int64), 0), tl.sum(length.to(tl.int64), 0)
    n_comparable = tl.sum(comparable.to(tl.int64), 0)
    std_sum = tl.sum(std.to(tl.float64), 0)
    exact = mean.to(tl.float64) + rest.to(tl.float64)
    many = count.to(tl.float64)
    batch_mean = tl.sum(many * exact, 0) / tl.maximum(n_finite, 1).to(tl.float64)
    # Around the common mean: the squares within the groups and those of the groups' means.
    apart = exact - batch_mean
    batch_squares = tl.sum(squares.to(tl.float64) + many * apart * apart, 0)
    if totals is None:
        _write_stats(
            counts,
            moments,
            n_groups,
            n_zero,
            n_single,
            n_all - n_finite,
            batch_mean,
            std_sum,
            n_comparable,
            A,
        )
    else:
        mine = totals + tl.program_id(0).to(tl.int64) * 8
        tl.store(mine + 0, n_groups.to(tl.float64))
        tl.store(mine + 1, n_zero.to(tl.float64))
        tl.store(mine + 2, n_single.to(tl.float64))
        tl.store(mine + 3, n_finite.to(tl.float64))
        tl.store(mine + 4, batch_mean)
        tl.store(mine + 5, batch_squares)
        tl.store(mine + 6, std_sum)
        tl.store(mine + 7, n_comparable.to(tl.float64))

    if SCALE == GROUP:
        divisor = std + tl.full((), eps, A)
    elif SCALE == BATCH and totals is None:
        divisor = tl.zeros([BLOCK_G], A) + _batch_divisor(batch_squares, n_finite, correction, eps).to(A)
    else:
        divisor = tl.full([BLOCK_G], 1.0, A)
    for start in range(0, longest, BLOCK_S):
        at, reward, known, inside = _members(rewards, order, begin, length, start, A, BLOCK_S)
        keep = known & varied[:, None]
        deviation = (reward - mean[:, None]) - rest[:, None]
        value = _scaled(deviation, divisor[:, None], keep, clip, A)
        tl.store(advantages + at, value, mask=inside)


@triton.jit
def advantage_finish_kernel(
    totals,
    counts,
    moments,
    divisor,  # divisor: one number for scale "batch", else None
    programs,
    count,
    eps: tl.float64,
    correction,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    groups, zero = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    single, finite = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    sums, std, comparable = (
        tl.zeros([BLOCK], tl.float64),
        tl.zeros([BLOCK], tl.float64),
        tl.zeros([BLOCK], tl.float64),
    )
    for start in range(0, programs, BLOCK):
        program = start + tl.arange(0, BLOCK)
        inside = program < programs
        row = totals + program.to(tl.int64) * 8
        groups += tl.load(row, mask=inside, other=0.0)
        zero += tl.load(row + 1, mask=inside, other=0.0)
        single += tl.load(row + 2, mask=inside, other=0.0)
        known = tl.load(row + 3, mask=inside, other=0.0)
        finite += known
        sums += known * tl.load(row + 4, mask=inside, other=0.0)
        std += tl.load(row + 6, mask=inside, other=0.0)
        comparable += tl.load(row + 7, mask=inside, other=0.0)
    n_finite = tl.sum(finite, 0).to(tl.int64)
    mean = tl.sum(sums, 0) / tl.maximum(n_finite, 1).to(tl.float64)
    _write_stats(
        counts,
        moments,
        tl.sum(groups, 0).to(tl.int64),
        tl.sum(zero, 0).to(tl.int64),
        tl.sum(single, 0).to(tl.int64),
        count - n_finite,
        mean,
        tl.sum(std, 0),
        tl.sum(comparable, 0).to(tl.int64),
        A,
    )
    if divisor is not None:
        squares = tl.zeros([BLOCK], tl.float64)
        for start in range(0, programs, BLOCK):
            program = start + tl.arange(0, BLOCK)
            inside = program < programs
            row = totals + program.to(tl.int64) * 8
            apart = tl.load(row + 4, mask=inside, other=0.0) - mean
            known = tl.load(row + 3, mask=inside, other=0.0)
            squares += tl.load(row + 5, mask=inside, other=0.0) + known * apart * apart
        tl.store(divisor, _batch_divisor(tl.sum(squares, 0), n_finite, correction, eps).to(A))


@triton.jit
def advantage_divide_kernel(advantages, divisor, count, clip: tl.float64, A: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    deviation = load(advantages + at, inside, A)
    tl.store(advantages + at, _scaled(deviation, tl.load(divisor), inside, clip, A), mask=inside)


# ---- ids, one program -----------------------------------------------------------------------------------------------


@triton.jit
def _run_range(start_a, low_a, high_a, start_b, low_b, high_b):
    fresh = start_b > 0
    return (
        start_a | start_b,
        tl.where(fresh, low_b, tl.minimum(low_a, low_b)),
        tl.where(fresh, high_b, tl.maximum(high_a, high_b)),
    )


@triton.jit
def _run_sum(start_a, sum_a, start_b, sum_b):
    return start_a | start_b, tl.where(start_b > 0, sum_b, sum_a + sum_b)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def _sorted(ids, count, BLOCK: tl.constexpr, LOG_BLOCK: tl.constexpr):
    """(ids in order, their positions), equal ids in the order of their positions; [BLOCK], padding last.

    A bitonic sort in a loop: `tl.sort` sorts no pairs, and unrolls into code that takes half a minute to compile.
    """
    k = tl.arange(0, BLOCK)
    position = k
    mine = tl.load(ids + k, mask=k < count, other=0x7FFFFFFFFFFFFFFF)
    for stage in range(LOG_BLOCK):
        for step in range(stage + 1):
            stride = 1 << (stage - step)
            other, other_position = tl.gather(mine, k ^ stride, 0), tl.gather(position, k ^ stride, 0)
            smaller = (mine < other) | ((mine == other) & (position < other_position))
            wants_smaller = ((k & stride) == 0) == ((k & (2 << stage)) == 0)
            mine = tl.where(smaller == wants_smaller, mine, other)
            position = tl.where(smaller == wants_smaller, position, other_position)
    return mine, position


@triton.jit
def advantage_ids_kernel(
    rewards,
    ids,  # [count]
    advantages,
    counts,
    moments,  # [count], [4], [2]
    count,
    eps: tl.float64,
    correction,
    resolution: tl.float64,
    clip: tl.float64,
    SCALE: tl.constexpr,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
    LOG_BLOCK: tl.constexpr,
):
    k = tl.arange(0, BLOCK)
    inside = k < count
    mine, order = _sorted(ids, count, BLOCK, LOG_BLOCK)
    starts = (k == 0) | (inside == 0) | (mine != tl.gather(mine, tl.maximum(k - 1, 0), 0))
    start = starts.to(tl.int32)
    last = (k == BLOCK - 1) | (tl.gather(start, tl.minimum(k + 1, BLOCK - 1), 0) > 0)
    end = tl.associative_scan(tl.where(last, k, BLOCK - 1), 0, _smaller, reverse=True)

    reward = load(rewards + order, inside, A)
    known = inside & is_finite(reward)
    reward = tl.where(known, reward, 0.0)
    low, high = tl.where(known, reward, float("inf")), tl.where(known, reward, float("-inf"))
    _, low, high = tl.associative_scan((start, low, high), 0, _run_range)
    varied = _varied(tl.gather(low, end, 0), tl.gather(high, end, 0), resolution, A)
    _, n = tl.associative_scan((start, known.to(tl.int32)), 0, _run_sum)
    finite = tl.gather(n, end, 0)
    _, total = tl.associative_scan((start, reward), 0, _run_sum)
    mean = divide(tl.gather(total, end, 0), tl.maximum(finite, 1).to(A))
    deviation = tl.where(known, reward - mean, 0.0)
    _, away = tl.associative_scan((start, deviation), 0, _run_sum)
    rest = divide(tl.gather(away, end, 0), tl.maximum(finite, 1).to(A))
    deviation = tl.where(known, deviation - rest, 0.0)
    _, spread = tl.associative_scan((start, deviation * deviation), 0, _run_sum)
    std = _std(tl.gather(spread, end, 0), finite, varied, correction, A)

    group = starts & inside  # one element speaks for its group
    comparable = group & (finite >= 2)
    n_finite = tl.sum(known.to(tl.int64), 0)
    n_comparable = tl.sum(comparable.to(tl.int64), 0)
    n_groups = tl.sum(group.to(tl.int64), 0)
    batch_mean = tl.sum(reward.to(tl.float64), 0) / tl.maximum(n_finite, 1).to(tl.float64)
    std_sum = tl.sum(tl.where(group, std, 0.0).to(tl.float64), 0)
    n_zero = tl.sum((comparable & (varied == 0)).to(tl.int64), 0)
    _write_stats(
        counts,
        moments,
        n_groups,
        n_zero,
        n_groups - n_comparable,
        count - n_finite,
        batch_mean,
        std_sum,
        n_comparable,
        A,
    )
    if SCALE == GROUP:
        divisor = std + tl.full((), eps, A)
    elif SCALE == BATCH:
        apart = tl.where(known, reward.to(tl.float64) - batch_mean, 0.0)
        divisor = tl.zeros([BLOCK], A) + _batch_divisor(tl.sum(apart * apart, 0), n_finite, correction, eps).to(A)
    else:
        divisor = tl.full([BLOCK], 1.0, A)
    value = _scaled(deviation, divisor, known & varied, clip, A)
    tl.store(advantages + order, value, mask=inside)


# ---- launches -------------------------------------------------------------------------------------------------------


def _warps(elements: int, compute: torch.dtype = torch.float32) -> int:
    """8 elements per thread, of fp64 half as many."""
    return max(1, min(16, elements * compute.itemsize // 1024))


def _runs(ids: Tensor) -> tuple[Tensor, Tensor]:
    """(positions ordered by id, where each run of equal ids begins; N + 1 entries, unused ones are N)."""
    ordered, order = ids.sort(stable=True)
    slots = ids.new_zeros(ids.shape[0])
    slots[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    return order, torch.searchsorted(slots, torch.arange(ids.shape[0] + 1, device=ids.device))


def group_advantage(
    rewards: Tensor,
    group_ids: Tensor | None,
    group_size: int,
    eps: float,
    correction: int,
    scale: int,
    clip: float,
    resolution: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `finpercep::group_advantage`: (advantages, counts, moments)."""
    rewards = rewards.contiguous()
    n = rewards.numel()
    compute = accumulation_type(rewards.dtype)
    A = triton_type(compute)
    advantages = rewards.new_empty(n, dtype=compute)
    counts, moments = rewards.new_empty(4, dtype=torch.int64), rewards.new_empty(2, dtype=compute)
    outputs = advantages, counts, moments
    clip = clip or float("inf")
    one_launch = n * compute.itemsize <= config.ADVANTAGE_ONE_LAUNCH * 4  # half as many in fp64: registers
    if group_ids is not None and one_launch:
        block = max(config.power_of_two(n), 16)
        advantage_ids_kernel[(1,)](
            rewards,
            group_ids.contiguous(),
            *outputs,
            n,
            eps,
            correction,
            resolution,
            clip,
            SCALE=scale,
            A=A,
            BLOCK=block,
            LOG_BLOCK=block.bit_length() - 1,
            num_warps=min(8, _warps(block)),  # with 16, 128 registers are too few
        )
        return outputs

    order, begins = (None, None) if group_ids is None else _runs(group_ids)
    groups = n if group_ids is not None else n // group_size
    if one_launch:
        block_g = config.power_of_two(groups)
        tile = max(config.ADVANTAGE_TILE, block_g)
        block_s = min(config.power_of_two(group_size), tile // block_g)
    else:
        block_s = 32 if order is not None else min(config.power_of_two(group_size), config.ADVANTAGE_TILE)
        block_g = config.ADVANTAGE_TILE // block_s
    programs = max(config.ceil_div(groups, block_g), 1)
    totals = rewards.new_empty((programs, TOTALS), dtype=torch.float64) if programs > 1 else None
    late = totals is not None and scale == BATCH  # divided, and then clipped, by the third launch
    advantage_rows_kernel[(programs,)](
        rewards,
        order,
        begins,
        *outputs,
        totals,
        groups,
        group_size,
        eps,
        correction,
        resolution,
        float("inf") if late else clip,
        SCALE=scale,
        A=A,
        BLOCK_G=block_g,
        BLOCK_S=block_s,
        num_warps=_warps(block_g * block_s, compute),
    )
    if totals is not None:
        divisor = rewards.new_empty(1, dtype=compute) if scale == BATCH else None
        advantage_finish_kernel[(1,)](
            totals,
            counts,
            moments,
            divisor,
            programs,
            n,
            eps,
            correction,
            A=A,
            BLOCK=config.ALL_PARTIALS,
            num_warps=config.ALL_PARTIALS_WARPS,
        )
        if divisor is not None:
            advantage_divide_kernel[(config.ceil_div(n, config.FLAT_BLOCK),)](
                advantages, divisor, n, clip, A=A, BLOCK=config.FLAT_BLOCK, num_warps=config.WARPS
            )
    return outputs
