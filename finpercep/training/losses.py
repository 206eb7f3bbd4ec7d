"""Losses of the reward model (supplement, section 5.1): L = 1.0·L_map + 0.8·L_rank + 0.6·L_align."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """The paper's weights, and what it leaves open.

    Attributes:
        entropy: weight of `entropy_loss`. [open] L_map alone cannot start a map from nothing; beside it to the end, on
            photos kept out, the map followed M_gt more closely at the same mean on clean photos. 0 is the paper's.
        level: weight of `level_loss`, in place of L_align where there is no RM_0 to align with.
        climb: weight of `level_loss` of climbed images, where images are climbed.
        restored: weight of the super-resolved images in the losses of the map, beside 1 for photos and implanted
            faults. [open] Their target, M_gt everywhere, teaches the map to see a fault that fills the picture, as in a
            loop that trains a generator; at full weight it teaches that soft photos are such faults, too.
        fault_odds: how many times higher the odds of a fault are taken to be in training than in use; the losses of the
            map see it through `raise_odds`. [open] Triplets are full of faults, and a model that was trained on few
            photos is too sure of them on others. 1 is the paper's.
        margin_sr: m1 of L_rank, by which S_syn must exceed S_SR.
        margin_syn: m2 of L_rank, by which S_GT must exceed S_syn. Smaller: a small or faint fault costs little.

    Raises:
        ValueError: a number that is negative or not finite.
    """

    map: float = 1.0
    entropy: float = 0.3
    level: float = 1.0
    climb: float = 1.0
    rank: float = 0.8
    align: float = 0.6
    restored: float = 0.3
    fault_odds: float = 4.5
    margin_sr: float = field(
        default=0.1, metadata={"help": "Both margins of the ranking loss, m1 and m2.", "option": "--margin"}
    )
    margin_syn: float = 0.1

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if not 0 <= value < math.inf:  # NaN too
                raise ValueError(f"{option.name}: expected a finite number of at least 0, got {value}")


def map_loss(predicted: Tensor, target: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """L_map = |M - M_gt|_1, the mean over (B,1,H,W); `weight` is a factor that broadcasts to it, e.g. (B,1,1,1)."""
    return (weight * (predicted - target).abs()).mean()


def raise_odds(predicted: Tensor, factor: float) -> Tensor:
    """The map (any shape, in [0, 1]) whose odds M/(1-M) are `factor` times those of `predicted`: its logits plus
    log(factor). As in logit-adjusted losses (Menon et al., 2021), what is trained through it answers that much lower.
    """
    return factor * predicted / (1 + (factor - 1) * predicted)


def entropy_loss(predicted: Tensor, target: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Binary cross-entropy of the map, the mean over (B,1,H,W), weighted as in `map_loss`.

    [open] Most pixels are clean, so a decoder that starts from nothing first learns to answer 0 everywhere, where the
    sigmoid leaves L_map no gradient.
    """
    # Torch refuses NaN, and on CUDA ends the context; it is to come out as the NaN of this loss.
    finite = predicted.isfinite() & target.isfinite()
    safe, goal = torch.where(finite, predicted, 0.5).clamp(0, 1), torch.where(finite, target, 0.5)  # rounding only
    found = F.binary_cross_entropy(safe, goal, reduction="none")
    return (weight * torch.where(finite, found, math.nan)).mean()


def rank_loss(
    gt: Tensor,
    syn: Tensor,
    sr: Tensor,
    *,
    margin_sr: float,
    margin_syn: float,
    worse_sr: Tensor | None = None,
    worse_syn: Tensor | None = None,
) -> Tensor:
    """L_rank = max(0, m1 - (S_syn - S_SR)) + max(0, m2 - (S_GT - S_syn)), each term the mean over its pairs.

    Args:
        gt, syn, sr: scores (B,) of photo, implanted photo and whole super-resolved image of each triplet.
        margin_sr, margin_syn: m1 and m2.
        worse_sr, worse_syn: bool (B,), whether the pair of the first and of the second term differs (see
            `distinct_pairs`): equal images have no order to learn. None takes all.
    """
    below_syn, below_gt = F.relu(margin_sr - (syn - sr)), F.relu(margin_syn - (gt - syn))
    return _mean_of(below_syn, worse_sr) + _mean_of(below_gt, worse_syn)


def _mean_of(values: Tensor, chosen: Tensor | None) -> Tensor:
    if chosen is None:
        return values.mean()
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp_min(1)


def order_loss(scores: Sequence[Tensor], target_syn: Tensor, target_sr: Tensor, weights: LossWeights) -> Tensor:
    """L_rank of scores (B,) of photo, implanted photo and whole result, whose M_gt are (B,1,H,W); ties do not enter."""
    worse_sr, worse_syn = distinct_pairs(target_syn, target_sr)
    gt, syn, sr = scores
    return rank_loss(
        gt,
        syn,
        sr,
        margin_sr=weights.margin_sr,
        margin_syn=weights.margin_syn,
        worse_sr=worse_sr,
        worse_syn=worse_syn,
    )


def triplet_targets(target_syn: Tensor, target_sr: Tensor, weights: LossWeights) -> tuple[Tensor, Tensor]:
    """M_gt (3B,1,H,W) of photos, implanted photos and whole results, one after the other, and their weights (3B,1,1,1).

    The photo and the whole result have targets too: nothing, and M_gt everywhere.
    """
    one = target_syn.new_ones(len(target_syn), 1, 1, 1)
    target = torch.cat([torch.zeros_like(target_syn), target_syn, target_sr])
    return target, torch.cat([one, one, weights.restored * one])


def map_losses(predicted: Tensor, target: Tensor, weight: Tensor, weights: LossWeights) -> dict[str, Tensor]:
    """`map_loss` and `entropy_loss` of a map (B,1,H,W) with its odds raised, by their names."""
    predicted = raise_odds(predicted, weights.fault_odds)
    return {"map": map_loss(predicted, target, weight), "entropy": entropy_loss(predicted, target, weight)}


def distinct_pairs(target_syn: Tensor, target_sr: Tensor, least: float = 2 / 255) -> tuple[Tensor, Tensor]:
    """Which triplets have an order: (whole result worse than implanted photo, implanted photo worse than photo).

    Args:
        target_syn, target_sr: M_gt (B,1,H,W) of the implanted photo and of the whole result.
        least: difference in M_gt that counts, at any pixel.

    Returns:
        Two tensors, bool (B,).
    """
    return (target_sr - target_syn).amax((1, 2, 3)) > least, target_syn.amax((1, 2, 3)) > least


def level_loss(score: Tensor, target: Tensor) -> Tensor:
    """Mean divergence of scores (B,) from the level 0.9 - 0.8·√mean(M_gt) of target M_gt (B,1,H,W), as probabilities.

    [open] What RM_0 learns where no pretrained quality model is at hand. Ranks alone leave the level of the scores
    free, and hinge gradients through a sigmoid then drift until all scores saturate at 0. The divergence, cross-entropy
    less what it is at best, pulls as hard there as anywhere. The root keeps small faults apart from none.
    """
    level = 0.9 - 0.8 * target.mean((1, 2, 3)).sqrt()
    found = score.clamp(1e-30, 1 - 2**-24)  # as near to 0 and 1 as float32 comes: the clamp itself has no gradient
    # Written out: torch's own looks at the values, and so waits for the device.
    apart, rest = level.log() - found.log(), (1 - level).log() - (1 - found).log()
    return (level * apart + (1 - level) * rest).mean()


def align_loss(gt: Tensor, base: Tensor) -> Tensor:
    """L_align = |S_GT - S_base(I_GT)|, the mean over scores (B,); `base` is the frozen RM_0's score."""
    return (gt - base.detach()).abs().mean()


def total_loss(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Weighted sum of the terms present (named like the weights)."""
    return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
