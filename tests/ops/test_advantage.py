"""group_advantage, Eq. 5."""

import math

import pytest
import torch

from finpercep import ops
from finpercep.ops import _backend
from finpercep.ops.advantage import group_advantage, group_advantage_reference
from tests.ops.equal_rewards import (
    DTYPES,
    check_default_resolution,
    check_noise,
    check_one_unit,
    check_resolution,
    check_sum,
)

BACKENDS = [
    "reference",
    pytest.param(
        "cpp", marks=pytest.mark.skipif(not _backend.has_cpp("group_advantage"), reason="extension not built")
    ),
]
needs_cpp = pytest.mark.skipif(not _backend.has_cpp("group_advantage"), reason="extension not built")
INF, NAN = math.inf, math.nan


def counts(stats):
    return [int(field) for field in stats[:4]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_computed(backend):
    rewards = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0, 10.0])
    advantages, stats = group_advantage(rewards, group_size=2, eps=0.0, backend=backend)
    assert advantages.tolist() == [-1.0, 1.0, 0.0, 0.0, -1.0, 1.0]
    assert counts(stats) == [3, 1, 0, 0]
    assert stats.reward_mean.item() == 3.0
    assert stats.reward_std.item() == pytest.approx((1 + 0 + 5) / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_eps_correction_and_clip(backend):
    rewards = torch.tensor([0.0, 1.0, 2.0])
    options = {"group_size": 3, "backend": backend}
    population = math.sqrt(2 / 3)
    plain, _ = group_advantage(rewards, **options)
    assert plain[2].item() == pytest.approx(1 / (population + 1e-4), rel=1e-6)
    unbiased, stats = group_advantage(rewards, correction=1, eps=1e-8, **options)
    assert unbiased.tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert stats.reward_std.item() == pytest.approx(1.0)
    clipped, _ = group_advantage(rewards, clip=0.5, **options)
    assert clipped.tolist() == [-0.5, 0.0, 0.5]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labelled", [False, True])
def test_scale(backend, labelled):
    rewards = torch.tensor([0.0, 2.0, 10.0, 14.0])
    groups = {"group_ids": torch.tensor([5, 5, -1, -1])} if labelled else {"group_size": 2}
    none, _ = group_advantage(rewards, scale="none", backend=backend, **groups)
    assert none.tolist() == [-1.0, 1.0, -2.0, 2.0]
    batch, _ = group_advantage(rewards, scale="batch", eps=0.0, backend=backend, **groups)
    spread = rewards.std(correction=0).item()
    assert batch.tolist() == pytest.approx([-1 / spread, 1 / spread, -2 / spread, 2 / spread], rel=1e-6)
    sample, _ = group_advantage(rewards, scale="batch", eps=0.5, correction=1, backend=backend, **groups)
    spread = rewards.std(correction=1).item() + 0.5
    assert sample.tolist() == pytest.approx([-1 / spread, 1 / spread, -2 / spread, 2 / spread], rel=1e-6)
    rewards[1] = NAN  # 0, 10 and 14 are left
    some, _ = group_advantage(rewards, scale="batch", eps=0.0, backend=backend, **groups)
    spread = torch.tensor([0.0, 10.0, 14.0]).std(correction=0).item()
    assert some.tolist() == pytest.approx([0, 0, -2 / spread, 2 / spread], rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("size", [2, 24])
def test_scale_batch_counts_groups_that_do_not_vary(backend, labelled, size):
    """Within the resolution their rewards differ: advantages of 0, but part of the standard deviation of all."""
    rewards = torch.tensor([0.5, 0.54] * (size // 2) * 50 + [0.5, 0.56] * (size // 2))
    groups = {"group_ids": torch.arange(len(rewards)) // size} if labelled else {"group_size": size}
    advantages, stats = group_advantage(rewards, scale="batch", eps=0.0, resolution=0.1, backend=backend, **groups)
    assert counts(stats)[1] == 50
    assert (advantages[:-size] == 0).all()
    assert advantages[-1].item() == pytest.approx(0.03 / rewards.double().std(correction=0).item(), rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_a_deviation_whose_square_vanishes_gives_no_infinite_advantages(backend, labelled, scale):
    """1e-50 is 0 in float32, where nothing is divided; CUDA's kernel adds the squares of a batch in float64."""
    groups = {"group_ids": torch.tensor([3, 3])} if labelled else {"group_size": 2}
    advantages, _ = group_advantage(torch.tensor([0.0, 1e-25]), scale=scale, eps=0.0, backend=backend, **groups)
    expected = (pytest.approx([-size, size], rel=1e-6, abs=0) for size in (5e-26, 1.0))
    assert any(advantages.tolist() == one for one in expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero(backend, labelled, scale):
    # 0.1 is not representable: its rounded mean differs from it, and (r - mean) / eps would not be 0.
    rewards = torch.cat([torch.full((24,), 0.1), torch.rand(24)])
    groups = {"group_ids": torch.arange(48) // 24} if labelled else {"group_size": 24}
    advantages, stats = group_advantage(rewards, scale=scale, eps=1e-12, backend=backend, **groups)
    assert (advantages[:24] == 0).all()
    assert (advantages[24:] != 0).any()
    assert counts(stats) == [2, 1, 0, 0]
    zeros, stats = group_advantage(0 * rewards, scale=scale, backend=backend, **groups)
    assert not zeros.any()
    assert counts(stats) == [2, 2, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_up_to_rounding(backend, labelled, dtype):
    check_one_unit(backend, dtype, labelled)
    check_default_resolution(backend, dtype, labelled)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_up_to_a_resolution(backend, labelled, dtype):
    check_resolution(backend, dtype, labelled)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_below_a_resolution(backend, labelled, dtype):
    check_noise(backend, dtype, labelled)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize(("count", "size"), [(16, 8), (96, 24), (90, 3), (5000, 8), (5000, 500), (6000, 2000)])
def test_advantages_sum_to_zero(backend, labelled, count, size):
    check_sum(backend, count, size, labelled)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labelled", [False, True])
def test_non_finite_rewards_are_left_out(backend, labelled):
    rewards = torch.tensor([1.0, NAN, 3.0, INF, 7.0, -INF, NAN, NAN, NAN])
    groups = {"group_ids": torch.tensor([1, 1, 1, 2, 2, 2, 3, 3, 3])} if labelled else {"group_size": 3}
    advantages, stats = group_advantage(rewards, eps=0.0, backend=backend, **groups)
    assert advantages.tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert counts(stats) == [3, 0, 2, 6]
    assert stats.reward_mean.item() == pytest.approx(11 / 3)
    assert stats.reward_std.item() == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labelled", [False, True])
def test_group_of_one(backend, labelled):
    groups = {"group_ids": torch.tensor([9, 8, 7])} if labelled else {"group_size": 1}
    for scale in ("group", "batch", "none"):
        rewards = torch.tensor([1.0, 5.0, 2.0])
        advantages, stats = group_advantage(rewards, scale=scale, correction=1, backend=backend, **groups)
        assert advantages.tolist() == [0.0, 0.0, 0.0]
        assert counts(stats) == [3, 0, 3, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_are_exact(backend):
    # These differ by 1 above 2^62: float32 and float64 see one id, and the groups would merge.
    big = 2**62
    ids = torch.tensor([big, big + 1, big, big + 1, -(2**63), -(2**63) + 1, -(2**63), -(2**63) + 1])
    assert ids.double().unique().numel() == 2
    rewards = torch.tensor([0.0, 100.0, 2.0, 104.0, 1.0, 7.0, 3.0, 7.0])
    advantages, stats = group_advantage(rewards, group_ids=ids, eps=0.0, backend=backend)
    assert advantages.tolist() == [-1.0, -1.0, 1.0, 1.0, -1.0, 0.0, 1.0, 0.0]
    assert counts(stats) == [4, 1, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_of_any_size_and_order_match_a_loop(backend):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(-40, 40, (1003,), generator=generator) * 2**53 + 7
    rewards = torch.randn(1003, generator=generator, dtype=torch.float64)
    advantages, stats = group_advantage(rewards, group_ids=ids, backend=backend)
    for one in ids.unique():
        mine = rewards[ids == one]
        expected = (mine - mine.mean()) / (mine.std(correction=0) + 1e-4)
        torch.testing.assert_close(advantages[ids == one], expected)
    assert int(stats.groups) == ids.unique().numel()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [255, 257, 1500, 4096])
def test_many_groups(backend, groups):
    """Ids that collide in a table, groups of one among large ones, more groups than a byte counts."""
    generator = torch.Generator().manual_seed(groups)
    names = torch.randperm(4 * groups, generator=generator)[:groups] * 2**40 - 2**50
    members = torch.cat([torch.arange(groups), torch.randint(0, groups // 3, (4096 - groups,), generator=generator)])
    members = members[torch.randperm(4096, generator=generator)]
    rewards = torch.rand(4096, generator=generator)
    advantages, stats = group_advantage(rewards, group_ids=names[members], backend=backend)
    assert int(stats.groups) == groups
    assert int(stats.single) == (members.bincount(minlength=groups) == 1).sum()
    many = members.bincount(minlength=groups)[members]
    mean = torch.zeros(groups, dtype=torch.float64).index_add_(0, members, rewards.double())[members] / many
    squares = torch.zeros(groups, dtype=torch.float64).index_add_(0, members, (rewards - mean).square())[members]
    expected = torch.where(many > 1, (rewards - mean) / ((squares / many).sqrt() + 1e-4), 0)
    torch.testing.assert_close(advantages.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_does_not_matter(backend):
    rewards, ids = torch.rand(96), torch.arange(96) // 24
    shuffle = torch.randperm(96, generator=torch.Generator().manual_seed(3))
    straight, _ = group_advantage(rewards, group_size=24, backend=backend)
    shuffled, _ = group_advantage(rewards[shuffle], group_ids=ids[shuffle], backend=backend)
    torch.testing.assert_close(shuffled, straight[shuffle], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_computes_in_fp32(backend, dtype):
    rewards = torch.rand(240).to(dtype)
    advantages, _ = group_advantage(rewards, group_size=24, backend=backend)
    wide, _ = group_advantage_reference(rewards.double(), group_size=24)
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(advantages.double(), wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_and_no_gradient(backend):
    advantages, stats = group_advantage(torch.zeros(0), group_size=4, backend=backend)
    assert advantages.shape == (0,)
    assert counts(stats) == [0, 0, 0, 0]
    ids = torch.zeros(0, dtype=torch.int64)
    advantages, stats = group_advantage(torch.zeros(0), group_ids=ids, backend=backend)
    assert counts(stats) == [0, 0, 0, 0]
    assert stats.reward_mean.item() == stats.reward_std.item() == 0
    advantages, _ = group_advantage(torch.rand(4, requires_grad=True), group_size=2, backend=backend)
    assert not advantages.requires_grad


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        (torch.zeros(2, 2), {"group_size": 2}, r"rewards: expected shape \(N,\), got \(2, 2\)"),
        (torch.zeros(4, dtype=torch.int64), {"group_size": 2}, "rewards: expected a floating-point"),
        (torch.zeros(4), {}, "group_size, group_ids: expected exactly one"),
        (torch.zeros(4), {"group_size": 3}, "group_size: expected a divisor of the 4 rewards, got 3"),
        (torch.zeros(4), {"group_size": 0}, "group_size: expected a divisor"),
        (torch.zeros(4), {"group_ids": torch.zeros(4)}, "group_ids: expected int64"),
        (torch.zeros(4), {"group_ids": torch.zeros(3, dtype=torch.int64)}, "group_ids: expected shape"),
        (torch.zeros(4), {"group_ids": torch.zeros(4, dtype=torch.int64, device="meta")}, "group_ids: .* on meta"),
        (torch.zeros(4), {"group_size": 2, "scale": "std"}, "scale: expected one of group, batch, none"),
        (torch.zeros(4), {"group_size": 2, "eps": -1.0}, "eps: expected"),
        (torch.zeros(4), {"group_size": 2, "correction": 2}, "correction: expected 0"),
        (torch.zeros(4), {"group_size": 2, "clip": 0.0}, "clip: expected"),
        (torch.zeros(4), {"group_size": 2, "resolution": -1e-9}, r"^resolution: expected None or a number in \[0, 1\)"),
        (torch.zeros(4), {"group_size": 2, "resolution": 1.0}, r"^resolution: expected .*, got 1.0$"),
        (torch.zeros(4), {"group_size": 2, "resolution": NAN}, r"^resolution: expected .*, got nan$"),
    ],
)
def test_errors_name_the_argument(rewards, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.group_advantage(rewards, **options)


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(TypeError, match=r"^rewards: expected a torch tensor, got ndarray"):
        ops.group_advantage(torch.ones(4).numpy(), group_size=2)
    with pytest.raises(TypeError, match=r"^group_ids: expected a torch tensor, got list"):
        ops.group_advantage(torch.ones(4), group_ids=["a", "a", "b", "b"])
