"""Rewards of results, and advantages in their groups."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep import ops
from finpercep.models import RewardOutput
from finpercep.rewards import Mixture, Reward, call_reward
from finpercep.rl.batch import Batch
from finpercep.rl.clock import timed
from finpercep.rl.experience import DeadGroups
from finpercep.rl.groups import Groups
from finpercep.rl.rollout import portions
from finpercep.rl.spatial import spatial_advantages


def as_file(images: Tensor) -> Tensor:
    """Images in [0, 1] as a file of 8 bits would hold them; the gradient passes the rounding unchanged."""
    images = images.float() if images.dtype != torch.float64 else images
    limited = images.clamp(0, 1)
    return limited + ((limited * 255).round() / 255 - limited).detach()


def score(reward: Reward, images: Tensor, batch: Batch) -> RewardOutput:
    """The reward of results (B,3,H,W) of a batch, with gradient where gradients are on.

    Where the reward takes them, it is given the low-resolution images, the prompt, and empty metadata.

    Raises:
        ValueError: scores of another shape or on another device.
    """
    context = {"lr": batch.lr, "prompts": [batch.prompt] * len(images), "metadata": [{} for _ in range(len(images))]}
    with timed("reward"):
        output = call_reward(reward, as_file(images), context)
    if output.score.device != images.device:
        raise ValueError(f"reward: expected scores on {images.device} like the images, got {output.score.device}")
    return output


@torch.no_grad()
def scores_and_map(
    reward: Reward, images: Tensor, batch: Batch, at_once: int = 0
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Scores of results, and the reward's map.

    Args:
        reward: of a stage.
        images: (B,3,H,W) in [0, 1].
        batch: that they are results of, row by row.
        at_once: with how many images the reward is called at most, 0: with all.

    Returns:
        Scores (B,) by name: "avg", and those of each part where the reward is a mixture; and the map (B,1,H,W), of a
        mixture the last part's that has one, which is the stage's own; None without any.

    Raises:
        ValueError: see `score`.
        FloatingPointError: a score is not finite; names the image.
    """
    scores: dict[str, Tensor] = {}
    if isinstance(reward, Mixture):
        found = {name: _score_portions(part, images, batch, at_once) for name, part in reward.parts.items()}
        scores = {name: values for name, (values, _) in found.items()}
        average = torch.stack([reward.weights[name] * values for name, values in scores.items()]).sum(0)
        maps = [one for _, one in found.values() if one is not None]
        faults = maps[-1] if maps else None
    else:
        average, faults = _score_portions(reward, images, batch, at_once)
    check_finite(average, batch.ids)
    return {**scores, "avg": average}, faults


def _score_portions(reward: Reward, images: Tensor, batch: Batch, at_once: int) -> tuple[Tensor, Tensor | None]:
    """Scores (B,) and map (B,1,H,W) of images, `at_once` in a call."""
    outputs = [score(reward, images[rows], batch[rows]) for rows in portions(len(batch), at_once)]
    maps = [output.map for output in outputs if isinstance(output.map, Tensor)]
    return torch.cat([output.score for output in outputs]), torch.cat(maps) if maps else None


def check_finite(scores: Tensor, ids: Tensor) -> None:
    """Refuse scores (N,) that are not finite; waits for the device.

    Raises:
        FloatingPointError: names the first image, of `ids` (N,), that has one.
    """
    finite = scores.isfinite()
    if not bool(finite.all()):
        bad = ids[~finite.cpu()].unique().tolist()
        raise FloatingPointError(f"reward: expected finite scores, got {scores[~finite][0].item()} for image {bad[0]}")


def ranked_by(reward: Reward, scores: dict[str, Tensor], ids: Tensor) -> Tensor:
    """What results (N,) are ranked by in their groups: scores, or of a mixture the sum of its normalized parts."""
    if not isinstance(reward, Mixture):
        return scores["avg"]
    return _by_parts(reward, scores, ids.to(scores["avg"].device))[0]


def _by_parts(reward: Mixture, scores: dict[str, Tensor], ids: Tensor) -> tuple[Tensor, dict[str, ops.GroupStats]]:
    """`Mixture.advantages` of what `scores_and_map` gives."""
    return reward.advantages({name: values for name, values in scores.items() if name != "avg"}, group_ids=ids)


def group_advantages(
    reward: Reward, scores: dict[str, Tensor], ids: Tensor, clip: float, *, keep_dead: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 5 in the groups that `ids` form; each part of a mixture is normalized before they are added.

    Args:
        keep_dead: all groups may be dead; their advantages are 0.

    Returns:
        Advantages (N,) within [-clip, clip], and figures for the log under flow_grpo's names; what it does not log, of
        each part of a mixture, is under Flow-Factory's.

    Raises:
        ValueError: a group of one.
        DeadGroups: no group whose rewards differ.
    """
    where = ids.to(scores["avg"].device)
    advantages, stats = ops.group_advantage(scores["avg"], group_ids=where)
    if int(stats.single):
        raise ValueError(f"group: expected two results of every image or more, got {int(stats.single)} with one")
    figures = {f"reward_{name}": values.mean() for name, values in scores.items()}
    figures |= {"reward_std_mean": stats.reward_std, "zero_std_ratio": stats.zero_variance / stats.groups}
    figures["group_size"] = len(ids) / stats.groups
    if isinstance(reward, Mixture):
        advantages, by_part = _by_parts(reward, scores, where)
        dead = min(int(one.zero_variance) for one in by_part.values())
        for name, one in by_part.items():
            figures[f"reward_{name}_group_std_mean"] = one.reward_std
            figures[f"reward_{name}_zero_std_ratio"] = one.zero_variance / one.groups
    else:
        dead = int(stats.zero_variance)
    figures["adv_abs_mean"] = advantages.abs().mean()
    # Parts of a mixture that differ may cancel.
    if not keep_dead and (dead == int(stats.groups) or not bool(advantages.any())):
        raise DeadGroups(_all_equal(int(stats.groups), "rewards"), figures)
    return advantages.clamp(-clip, clip), figures


def _all_equal(groups: int, what: str) -> str:
    return (
        f"reward: all {groups} groups have equal {what}, so that nothing can be learned; raise noise_level or "
        "group_size, or use a reward that is not saturated on these images"
    )


def result_advantages(
    reward: Reward,
    images: Tensor,
    batch: Batch,
    grid: torch.Size,
    groups: Groups,
    *,
    clip: float,
    map_weight: float,
    keep_dead: bool,
    at_once: int,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`group_advantages` of this process's results (N,3,H,W); with `map_weight`, spatial credit.

    Args:
        batch: of the results; those of an image lie side by side.
        grid: (h, w) of the latents.
        map_weight: γ of `spatial_advantages`; 0 is one advantage for all positions, as are all of RM_0.
        keep_dead: see `group_advantages`.
        at_once: see `scores_and_map`.

    Returns:
        Advantages within [-clip, clip], (N,), or with `map_weight` (N,h·w); the numbers of the rows to learn from,
        which are all with `keep_dead`; and figures for the log, of all processes that divide the groups.

    Raises:
        ValueError: spatial credit with a reward without map.
        DeadGroups, FloatingPointError: see `group_advantages` and `scores_and_map`.
    """
    own, faults = scores_and_map(reward, images, batch, at_once)
    scores = {name: groups.whole(values) for name, values in own.items()}
    ids = batch.ids[:: groups.own].repeat_interleave(groups.size)
    # With equal rewards the map may still tell results apart, in this process as in any other.
    advantages, figures = group_advantages(reward, scores, ids, clip, keep_dead=keep_dead or bool(map_weight))
    if map_weight:
        height, width = grid
        coarse = groups.whole(F.adaptive_avg_pool2d(credit_map(faults, reward, own), (height, width)))
        advantages = spatial_advantages(advantages, coarse, groups.size, (height, width), map_weight).clamp(-clip, clip)
        if not keep_dead and not bool(advantages.any()):
            raise DeadGroups(_all_equal(len(advantages) // groups.size, "rewards and maps"), figures)
    rows = groups.rows(len(batch) // groups.own).to(advantages.device)
    taught = torch.ones_like(rows, dtype=torch.bool) if keep_dead else alive(advantages, groups.size)[rows]
    return advantages[rows], torch.nonzero(taught).flatten(), figures


def credit_map(faults: Tensor | None, reward: Reward, scores: dict[str, Tensor]) -> Tensor:
    """The map for spatial credit; of RM_0, to which a map comes with a later stage, one that is 0 everywhere.

    Raises:
        ValueError: see `check_map`.
    """
    if faults is not None:
        return faults
    check_map(reward)
    return scores["avg"].new_zeros(len(scores["avg"]), 1, 1, 1)


def check_rewards(rewards: Mapping[str, Reward], images: Tensor, batch: Batch, *, gradients: bool, maps: bool) -> None:
    """Ask every stage's reward once, before the first step rather than when its stage begins.

    Args:
        rewards: by name.
        images: (B,3,H,W) of the batch, on the rewards' device.
        gradients: whether scores need gradients to the pixels.
        maps: whether there is spatial credit.

    Raises:
        ValueError: a reward without what is needed, or one that does not keep to the protocol; names it.
    """
    for name, reward in rewards.items():
        pixels = images.clone().requires_grad_(gradients)
        outputs = {part: score(one, pixels, batch) for part, one in _named_parts(reward).items()}
        for part, output in outputs.items() if gradients else ():
            if not _has_gradient(output.score, pixels):
                which = f"{part} of {name}" if part else name
                raise ValueError(
                    f"stages: expected rewards with gradients to the pixels, which ReFL needs, got {which} without; "
                    "use grpo, dpo or nft for it"
                )
        if maps and all(output.map is None for output in outputs.values()):
            check_map(reward)


def _has_gradient(scores: Tensor, pixels: Tensor) -> bool:
    """Whether scores (B,) have a gradient to the pixels that is not 0 everywhere, as behind a rounding."""
    if not scores.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(scores.sum(), pixels, allow_unused=True)
    return gradient is not None and bool(gradient.any())


def check_map(reward: Reward) -> None:
    """Refuse spatial credit by a reward without map, unless it is RM_0 of a curriculum, or a mixture with it.

    Raises:
        ValueError: names the reward.
    """
    if not awaits_map(reward):
        names = ", ".join(type(getattr(part, "reward", part)).__name__ for part in _parts(reward))
        raise ValueError(f"map_weight: expected a reward with a map, got {names} without")


def awaits_map(reward: Reward) -> bool:
    """Whether a reward has no map yet, but may in a later stage: RM_0, or a mixture with it and without a map."""
    parts = _parts(reward)
    has_map = any(getattr(getattr(part, "reward", part), "has_map", False) for part in parts)
    return not has_map and any(getattr(part, "without_map", False) for part in parts)


def _parts(reward: Reward) -> list[Reward]:
    return list(_named_parts(reward).values())


def _named_parts(reward: Reward) -> dict[str, Reward]:
    """The rewards of a mixture by name; any other one under no name."""
    return reward.parts if isinstance(reward, Mixture) else {"": reward}


def alive(advantages: Tensor, group_size: int) -> Tensor:
    """Which rows (N, ...) have a group with an advantage that is not 0, (N,); groups lie side by side.

    The others would teach nothing, but would have a share in every mean.
    """
    groups = (advantages != 0).flatten(1).any(1) if advantages.dim() > 1 else advantages != 0
    return groups.view(-1, group_size).any(1).repeat_interleave(group_size)
