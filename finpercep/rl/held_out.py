"""Measures that the loop does not climb: results on photos that are never trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from finpercep.data.features.filter_bank import FilterBank
from finpercep.data.targets import fault_target
from finpercep.rewards import Mixture, Reward, StageReward
from finpercep.rl.batch import Batch
from finpercep.rl.generators import Generator
from finpercep.rl.measures import Measure
from finpercep.rl.monitors import (
    color_entropy,
    edge_density,
    high_frequencies,
    recompressed,
    score_map_gap,
    share_lost,
    ssim,
    velocity_figures,
)
from finpercep.rl.pair import Pair
from finpercep.rl.rollout import results
from finpercep.rl.scores import as_file, score


class HeldOut:
    """Center crops of photos, each with the low-resolution version that its set has, and extras that all pairs have.

    Args:
        pairs: photos that are not trained on.
        side: of the crops, pixels, a multiple of `scale`.
        steps: of the sampler.
        size: images in a forward pass.
        prompt: of all images, see `Batch`.
    """

    def __init__(
        self, pairs: Sequence[Pair], side: int, scale: int, steps: int, *, size: int = 8, prompt: str = ""
    ) -> None:
        crops = [_center(pair, side, scale) for pair in pairs]
        lr, photo = (torch.stack(images).float() / 255 for images in zip(*crops, strict=True))
        names = sorted(set.intersection(*(set(pair.extras) for pair in pairs)))
        extras = {name: torch.stack([pair.extras[name]() for pair in pairs]) for name in names}
        aligned = torch.tensor([pair.aligned for pair in pairs])
        self.batch = Batch(lr, torch.arange(len(pairs)), photo, extras, prompt=prompt, aligned=aligned)
        self.steps, self.size = steps, size
        self.bank = FilterBank()

    @property
    def photo(self) -> Tensor:
        """The photos (B,3,H,W), float in [0, 1], on the CPU."""
        photo = self.batch.photo
        assert photo is not None  # `_center` has refused what has none
        return photo

    @property
    def aligned(self) -> Tensor:
        """(B,) bool: whether photo and low-resolution image lie on the same pixels."""
        aligned = self.batch.aligned
        assert aligned is not None
        return aligned

    def images(self, generator: Generator, device: torch.device) -> Tensor:
        """Results (B,3,H,W) as files would hold them, on the CPU; always from the same noise."""
        parts = (self.batch[i : i + self.size].to(device) for i in range(0, len(self.batch), self.size))
        return torch.cat([as_file(results(generator, part, self.steps, "held out")).cpu() for part in parts])

    @torch.no_grad()
    def measure(
        self,
        images: Tensor,
        reward: Reward,
        device: torch.device,
        judge: Reward | None = None,
        further: Mapping[str, Measure] | None = None,
    ) -> dict[str, Tensor]:
        """Figures (B,), photo by photo, of results (B,3,H,W).

        Returns:
            "reward_avg" and, of a judge, "judge"; "psnr" (dB), "ssim" and "severity" of the true fault map M_gt against
            the photo; and, without the photo, "edges", "high_frequencies", "color_entropy", "jpeg_share": what share of
            the reward JPEG at quality 75 takes away (`share_lost`), and "score_map_gap", where the reward's model has a
            map (`score_map_gap`); and the `further` measures by their names.
        """
        rewards = self.scores(images, reward, device)
        lost = share_lost(rewards, self.scores(recompressed(images), reward, device))
        values = {"reward_avg": rewards, "jpeg_share": lost, **self._gap(images, reward, device)}
        if judge is not None:
            values["judge"] = self.scores(images, judge, device)
        for name, measure in (further or {}).items():
            found = [measure.function(images[rows].to(device), self.batch[rows].to(device)) for rows in self._rows()]
            values[name] = torch.cat(found).cpu()
        return {
            **values,
            "psnr": psnr(images, self.photo),
            "ssim": ssim(images, self.photo),
            "severity": severity(images, self.photo, self.bank, self.aligned),
            "edges": edge_density(images),
            "high_frequencies": high_frequencies(images),
            "color_entropy": color_entropy(images),
        }

    def velocities(self, generator: Generator, device: torch.device) -> dict[str, Tensor]:
        """`velocity_figures`, name -> (B,), against the reference."""
        found = [velocity_figures(generator, self.batch[rows].to(device), self.steps) for rows in self._rows()]
        return {name: torch.cat([part[name].cpu() for part in found]) for name in found[0]}

    def _gap(self, images: Tensor, reward: Reward, device: torch.device) -> dict[str, Tensor]:
        """`score_map_gap` of the stage's own model, in a mixture of the last one with a map; empty without any."""
        for part in reversed(reward.parts.values() if isinstance(reward, Mixture) else [reward]):
            model = part.reward if isinstance(part, StageReward) else part
            outputs = (score(model, images[rows].to(device), self.batch[rows].to(device)) for rows in self._rows())
            found = [gap.cpu() for gap in map(score_map_gap, outputs) if gap is not None]
            if found:
                return {"score_map_gap": torch.cat(found)}
        return {}

    @torch.no_grad()
    def scores(self, images: Tensor, reward: Reward, device: torch.device) -> Tensor:
        """Of results (B,3,H,W), on the CPU."""
        found = [
            score(reward, images[rows].to(device), self.batch[rows].to(device)).score.cpu() for rows in self._rows()
        ]
        return torch.cat(found)

    def _rows(self) -> Iterator[slice]:
        return (slice(i, i + self.size) for i in range(0, len(self.batch), self.size))


def psnr(images: Tensor, photos: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of RGB images in [0, 1]; at most 100, which is an exact match."""
    return -10 * (images - photos).square().flatten(1).mean(1).clamp_min(1e-10).log10()


def severity(images: Tensor, photos: Tensor, bank: FilterBank, aligned: bool | Tensor = True) -> Tensor:
    """Mean of M_gt (B,): 0 where nothing differs visibly from the photo, towards 1 the worse.

    `aligned` is that of `fault_target`.
    """
    return fault_target(photos, images, bank, aligned=aligned).flatten(1).mean(1)


def _center(pair: Pair, side: int, scale: int) -> tuple[Tensor, Tensor]:
    if pair.photo is None:
        raise ValueError(f"{pair.name}: expected a photo to measure against, got a low-resolution image alone")
    if pair.fixed and pair.sides != (side, side):
        height, width = pair.sides
        raise ValueError(f"side: expected {height} x {width} as {pair.name}, whose latents are given, got {side}")
    if min(pair.sides) < side:
        height, width = pair.sides
        raise ValueError(f"{pair.name}: expected sides of at least {side} to measure on, got {width}x{height}")
    low = side // scale
    top, left = ((length - low) // 2 for length in pair.lr.shape[1:])
    rows, columns = slice(top * scale, top * scale + side), slice(left * scale, left * scale + side)
    return pair.lr[:, top : top + low, left : left + low], pair.photo[:, rows, columns]
