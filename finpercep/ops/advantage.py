"""Group-relative advantages: Eq. 5, `A_i = (R_i - mean(R)) / (std(R) + eps)` within one group of samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from finpercep.ops import _backend, _registration

SCALES = ("group", "batch", "none")


def default_resolution(dtype: torch.dtype) -> float:
    """What rewards of this type differ by through rounding alone, relative to the largest magnitude of a group.

    4 units in the last place, `torch.finfo(dtype).eps`; of half precision, whose numbers were rounded once, one unit:
    4.8e-7 for fp32, 7.8e-3 for bf16.
    """
    return torch.finfo(dtype).eps * (4 if dtype.itemsize >= 4 else 1)


class GroupStats(NamedTuple):
    """What the rewards of one call looked like. Every field is a 0-d tensor on the rewards' device."""

    groups: Tensor
    """number of groups (int64)"""
    zero_variance: Tensor
    """groups with at least two finite rewards that are all equal up to the resolution: they teach nothing (int64)"""
    single: Tensor
    """groups with fewer than two finite rewards: nothing to compare with (int64)"""
    non_finite: Tensor
    """NaN or infinite rewards, left out of every statistic (int64)"""
    reward_mean: Tensor
    """mean of all finite rewards; 0 when there is none"""
    reward_std: Tensor
    """mean standard deviation of the groups that have at least two finite rewards; 0 when there is none"""


class _Blocks:
    """Reductions over contiguous groups of equal size."""

    def __init__(self, rewards: Tensor, size: int) -> None:
        self.size = size
        self.present = rewards.new_ones(rewards.shape[0] // size, dtype=torch.bool)

    def total(self, values: Tensor) -> Tensor:  # [N] -> [G]
        return values.reshape(-1, self.size).sum(1)

    def low(self, values: Tensor) -> Tensor:
        return values.reshape(-1, self.size).amin(1)

    def high(self, values: Tensor) -> Tensor:
        return values.reshape(-1, self.size).amax(1)

    def spread(self, per_group: Tensor) -> Tensor:  # [G] -> [N]
        return per_group[:, None].expand(-1, self.size).reshape(-1)


class _Labels:
    """Reductions over groups named by int64 ids, in any order. Ids are compared as integers only.

    There are N slots, the number of groups being unknown without asking the device; `present` marks those in
    use.
    """

    def __init__(self, rewards: Tensor, ids: Tensor) -> None:
        ordered, order = torch.sort(ids)
        starts = torch.ones_like(ordered, dtype=torch.bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        self.slot = torch.empty_like(order).scatter_(0, order, starts.cumsum(0) - 1)  # [N]
        self.slots = ids.shape[0]
        self.present = torch.arange(self.slots, device=ids.device) < starts.sum()

    def total(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.slots).index_add_(0, self.slot, values)

    def _reduce(self, values: Tensor, how: str) -> Tensor:
        out = values.new_zeros(self.slots)
        return out.scatter_reduce_(0, self.slot, values, how, include_self=False)

    def low(self, values: Tensor) -> Tensor:
        return self._reduce(values, "amin")

    def high(self, values: Tensor) -> Tensor:
        return self._reduce(values, "amax")

    def spread(self, per_group: Tensor) -> Tensor:
        return per_group[self.slot]


def group_advantage_reference(
    rewards: Tensor,
    *,
    group_size: int | None = None,
    group_ids: Tensor | None = None,
    eps: float = 1e-4,
    correction: int = 0,
    scale: str = "group",
    clip: float | None = None,
    resolution: float | None = None,
) -> tuple[Tensor, GroupStats]:
    """The definition of `group_advantage` in plain PyTorch; same arguments, no checks."""
    if resolution is None:
        resolution = default_resolution(rewards.dtype)
    r = rewards.detach()
    r = r if r.dtype == torch.float64 else r.float()
    groups: _Blocks | _Labels = _Labels(r, group_ids) if group_ids is not None else _Blocks(r, group_size or 1)
    finite = r.isfinite()  # [N]
    known = torch.where(finite, r, 0)

    count = groups.total(finite.to(r.dtype))  # [G]
    mean = groups.total(known) / count.clamp(min=1)
    deviation = torch.where(finite, r - groups.spread(mean), 0)  # [N]
    # The mean is rounded: what is left of the deviations would be the sum of the advantages.
    rest = groups.spread(groups.total(deviation) / count.clamp(min=1))
    deviation = torch.where(finite, deviation - rest, 0)
    std = (groups.total(deviation.square()) / (count - correction).clamp(min=1)).sqrt()  # [G]
    low = groups.low(torch.where(finite, r, torch.inf))
    high = groups.high(torch.where(finite, r, -torch.inf))
    comparable = groups.present & (count >= 2)
    lively = comparable & (high - low > resolution * torch.maximum(low.abs(), high.abs()))
    std = torch.where(lively, std, 0)

    total = finite.sum()
    reward_mean = known.sum() / total.clamp(min=1)
    if scale == "group":
        divisor = groups.spread(std) + eps
    elif scale == "batch":
        away = torch.where(finite, r - reward_mean, 0)
        squares = torch.where(finite, away - away.sum() / total.clamp(min=1), 0).square().sum()
        divisor = (squares / (total - correction).clamp(min=1)).sqrt() + eps
    else:
        divisor = torch.ones_like(reward_mean)
    divisor = torch.where(divisor > 0, divisor, 1)
    advantages = torch.where(finite & groups.spread(lively), deviation / divisor, 0)
    if clip is not None:
        advantages = advantages.clamp(-clip, clip)

    stats = GroupStats(
        groups=groups.present.sum(),
        zero_variance=(comparable & ~lively).sum(),
        single=(groups.present & ~comparable).sum(),
        non_finite=(~finite).sum(),
        reward_mean=reward_mean,
        reward_std=std.sum() / comparable.sum().clamp(min=1),
    )
    return advantages, stats


def _check(
    rewards: Tensor,
    group_size: int | None,
    group_ids: Tensor | None,
    eps: float,
    correction: int,
    scale: str,
    clip: float | None,
    resolution: float | None,
) -> None:
    _backend.require_tensors("group_ids", rewards=rewards, group_ids=group_ids)
    if rewards.dim() != 1:
        raise ValueError(f"rewards: expected shape (N,), got {tuple(rewards.shape)}")
    if not rewards.is_floating_point():
        raise TypeError(f"rewards: expected a floating-point tensor, got {rewards.dtype}")
    if (group_size is None) == (group_ids is None):
        raise ValueError("group_size, group_ids: expected exactly one of the two")
    if group_size is not None and (group_size < 1 or rewards.shape[0] % group_size):
        raise ValueError(f"group_size: expected a divisor of the {rewards.shape[0]} rewards, got {group_size}")
    if group_ids is not None:
        if group_ids.dtype != torch.int64:
            raise TypeError(f"group_ids: expected int64 (ids are compared exactly), got {group_ids.dtype}")
        if group_ids.shape != rewards.shape or group_ids.device != rewards.device:
            raise ValueError(
                f"group_ids: expected shape {tuple(rewards.shape)} on {rewards.device}, "
                f"got {tuple(group_ids.shape)} on {group_ids.device}"
            )
    if not eps >= 0:
        raise ValueError(f"eps: expected a number >= 0, got {eps}")
    if correction not in (0, 1):
        raise ValueError(f"correction: expected 0 (population) or 1 (sample), got {correction}")
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: expected None or a number > 0, got {clip}")
    if resolution is not None and not 0 <= resolution < 1:
        raise ValueError(f"resolution: expected None or a number in [0, 1), got {resolution}")


def group_advantage(
    rewards: Tensor,
    *,
    group_size: int | None = None,
    group_ids: Tensor | None = None,
    eps: float = 1e-4,
    correction: int = 0,
    scale: str = "group",
    clip: float | None = None,
    resolution: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, GroupStats]:
    """Advantages of rewards relative to their group, Eq. 5.

    Args:
        rewards: `(N,)` floating point. No gradient flows through them.
        group_size: groups are contiguous runs of this many rewards; or
        group_ids: `(N,)` int64, any values in any order, groups of any size. An id names the low-quality
            image (not the prompt, which many images share). Ids are never converted to floating point.
        eps: added to the standard deviation, in the rewards' own unit. Scores in [0, 1] often differ by a few
            thousandths within a group, where the default takes some per cent off: 1e-6 or less does not.
        correction: 0 divides the variance by n (flow_grpo), 1 by n - 1 (DanceGRPO).
        scale: divide by the standard deviation of the `group`, of the whole `batch`, or by nothing (`none`).
        clip: advantages are limited to `[-clip, clip]`.
        resolution: rewards of a group are equal if their range is at most this times the largest magnitude among
            them, in [0, 1). None is what rounding alone makes of equal rewards: 4 `torch.finfo(rewards.dtype).eps`,
            4.8e-7 in fp32; of half precision 1 eps, 7.8e-3 in bf16 and 9.8e-4 in fp16. 0 takes any difference for one.
            Raise it to what the reward cannot tell apart: a smaller `eps` blows such noise up to advantages near 1.
        backend: None picks the fastest; "reference", "cpp", "triton" or "cuda" insist.

    Returns:
        advantages `(N,)` in fp32 (fp64 for fp64 rewards) and `GroupStats`. Those of a group sum to 0 within
        rounding, unless they are clipped. Groups of one, groups whose rewards are equal up to the resolution,
        and non-finite rewards get exactly 0; non-finite rewards do not touch their group's statistics.

    Raises:
        ValueError, TypeError: one line that names the argument. RuntimeError: a backend that cannot run here.
    """
    _check(rewards, group_size, group_ids, eps, correction, scale, clip, resolution)
    chosen = _backend.resolve(backend, "group_advantage", rewards.device, rewards.dtype)
    if chosen == "reference":
        return group_advantage_reference(
            rewards,
            group_size=group_size,
            group_ids=group_ids,
            eps=eps,
            correction=correction,
            scale=scale,
            clip=clip,
            resolution=resolution,
        )
    advantages, counts, moments = _backend.operator(chosen, "group_advantage")(
        rewards.detach() if rewards.requires_grad else rewards,
        group_ids,
        group_size or 0,
        eps,
        correction,
        SCALES.index(scale),
        clip or 0.0,
        default_resolution(rewards.dtype) if resolution is None else resolution,
    )
    return advantages, GroupStats(*counts.unbind(), *moments.unbind())


def _fake(
    rewards: Tensor,
    group_ids: Tensor | None,
    group_size: int,
    eps: float,
    correction: int,
    scale: int,
    clip: float,
    resolution: float,
) -> tuple[Tensor, Tensor, Tensor]:
    compute = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    return (
        rewards.new_empty(rewards.shape, dtype=compute),
        rewards.new_empty(4, dtype=torch.int64),
        rewards.new_empty(2, dtype=compute),
    )


_registration.register("group_advantage", fake=_fake)
